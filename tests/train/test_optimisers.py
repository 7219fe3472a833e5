"""Each optimiser against its paper, through the steps of an ensemble."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ensembles import D, ensemble, stream
from making import Pair, close, copied, equal, members
from reference import OPTIMISERS

from ensemble_sae.signatures import BUILTIN, Tensors
from ensemble_sae.train import Optimiser

BETA2, EPS = {"beta2": 0.95}, {"eps": 1e-6}
MOMENTS = {"beta1": 0.8, **BETA2, **EPS}
KINDS: dict[str, dict[str, Any]] = {  # what the reference is given
    "adam": MOMENTS,
    "adamw": {**MOMENTS, "weight_decay": 0.3},
    "radam": MOMENTS,
    "rmsprop": {**BETA2, **EPS},
    "sgd": {"momentum": 0.7},
}
every = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("kernel", ["generic", "auto"])
LR = [0.1, 0.01, 0.003]


def made(kind: str, **changes: Any) -> Optimiser:
    values = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3, "momentum": 0.7}
    return Optimiser(kind, **{**values, **changes})


def loop(name: str, pair: Pair, lr: float, kind: str, steps: int) -> Tensors:
    params, buffers = copied(pair)
    optimisers = {key: OPTIMISERS[kind](lr=lr, **KINDS[kind]) for key in params}
    for batch in stream(steps):
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in params.items()}
        total, _ = BUILTIN[name].loss(leaves, buffers, batch)
        slopes = torch.autograd.grad(total, list(leaves.values()))
        for key, slope in zip(leaves, slopes, strict=True):
            update = optimisers[key].update(slope.numpy(), params[key].numpy())
            params[key] = params[key] + torch.tensor(update)
    return params


@every
@both
@pytest.mark.parametrize("name", ["untied", "tied"])
def test_ten_steps_are_those_of_the_paper(kind: str, kernel: str, name: str) -> None:
    pairs = members(name, 3, D, 9)
    found = ensemble(name, pairs, lr=LR, optimiser=made(kind), kernel=kernel)
    for batch in stream(10):
        found.step(batch)
    for pair, (params, _), lr in zip(pairs, found.members(), LR, strict=True):
        expected = loop(name, pair, lr, kind, 10)
        change, wanted = ({k: p[k] - pair[0][k] for k in p} for p in (params, expected))
        close(change, wanted, 1e-10)


def test_the_defaults_are_those_of_adams_paper() -> None:
    pairs = members("untied", 1, D, 9)
    found, given = (
        ensemble("untied", pairs, optimiser=optimiser)
        for optimiser in (None, Optimiser("adam", (0.9, 0.999), 1e-8))
    )
    for batch in stream(3):
        found.step(batch)
        given.step(batch)
    equal(found.state_dict(), given.state_dict())


def test_without_momentum_sgd_is_the_gradient() -> None:
    pairs = members("untied", 1, D, 9)
    found = ensemble("untied", pairs, optimiser=made("sgd", momentum=0.0), kernel="generic")
    for batch in stream(4):
        slopes = found.kernels.dense(found.params, found.buffers, batch).params
        expected = {key: p - 0.01 * slopes[key] for key, p in found.params.items()}
        found.step(batch)
        close(found.params, expected, 1e-14)


def test_the_decay_is_decoupled_and_adamws_alone() -> None:
    pairs, batch = members("untied", 2, D, 9), stream(1)[0]
    found = {
        (kind, decay): ensemble("untied", pairs, lr=0.05, optimiser=made(kind, weight_decay=decay))
        for kind, decay in (("adam", 0.3), ("adamw", 0.3), ("adamw", 0.0))
    }
    before = {name: t.clone() for name, t in found["adam", 0.3].params.items()}
    for each in found.values():
        each.step(batch)
    decayed, plain = found["adamw", 0.3], found["adamw", 0.0]
    equal(found["adam", 0.3].state_dict(), plain.state_dict())
    expected = {name: t - 0.05 * 0.3 * before[name] for name, t in plain.params.items()}
    close(decayed.params, expected, 1e-14)
    moments = [
        {k: t for k, t in e.state_dict().items() if k.startswith("optimiser/")}
        for e in (decayed, plain)
    ]
    equal(*moments)


@every
@both
def test_a_state_goes_on_in_another_ensemble(kind: str, kernel: str) -> None:
    pairs = members("untied", 3, D, 9)
    options = {"lr": LR, "optimiser": made(kind), "kernel": kernel}
    through, again = (
        ensemble("untied", pairs, **options),
        ensemble("untied", pairs[::-1], **options),
    )
    for batch in stream(7):
        through.step(batch)
    again.load_state_dict({name: t.clone() for name, t in through.state_dict().items()})
    for batch in stream(7, first=7):
        through.step(batch)
        again.step(batch)
    equal(again.state_dict(), through.state_dict())


@every
def test_a_step_count_advances(kind: str) -> None:
    found = ensemble("untied", members("untied", 2, D, 9), optimiser=made(kind))
    for batch in stream(5):
        found.step(batch)
    state = found.state_dict()
    counts = [int(t) for key, t in state.items() if key.startswith("optimiser/count")]
    assert counts == ([5] * 3 if kind.startswith("adam") else [])
    if kind == "radam":
        assert int(state["optimiser/t"]) == 6  # the number of the next one
