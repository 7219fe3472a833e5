"""An ensemble against a loop over its members: one model at a time, an optimiser written out.

What all signatures have in common, on a few of them; `test_trained_table` has every one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import making
import pytest
import torch
from making import Pair, close, copied, equal, rows
from reference import Adam as ReferenceAdam
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.files import open_tensors, write_tensors
from ensemble_sae.signatures import BUILTIN, Tensors
from ensemble_sae.train import Dynamics, FunctionalEnsemble, Optimiser, slices, stacking

some = pytest.mark.parametrize("name", ["untied", "tied", "affine"])
both = pytest.mark.parametrize("kernel", ["generic", "auto"])
D, N, B, STEPS = 6, 9, 13, 12
LEARNED = {"affine": {"centring": "learned"}}


def member(name: str, d: int, n: int, **options: Any) -> Pair:
    return making.member(name, d, n, **LEARNED.get(name, {}), **options)


def members(name: str, count: int, **options: Any) -> list[Pair]:
    return [member(name, D, N, seed=seed, **options) for seed in range(count)]


def batches(count: int = STEPS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [rows(B, D, seed=100 + step, dtype=dtype) for step in range(count)]


def trained(
    name: str, pairs: Sequence[Pair], stream: Sequence[Tensor], **options: Any
) -> FunctionalEnsemble:
    options.setdefault("lr", 0.01)
    ensemble = FunctionalEnsemble.from_members(
        BUILTIN[name], [copied(pair) for pair in pairs], batch_size=B, **options
    )
    for batch in stream:
        ensemble.step(batch)
    return ensemble


def loop(
    name: str,
    pair: Pair,
    stream: Sequence[Tensor],
    lr: float = 0.01,
    clip: float = math.inf,
    lr_warmup: int = 0,
    l1_warmup: int = 0,
    **adam: float,
) -> Tensors:
    """One member trained alone, without vmap, torchopt or stacking."""
    params, buffers = copied(pair)
    optimisers = {key: ReferenceAdam(1.0, **adam) for key in params}
    for step, batch in enumerate(stream, 1):
        rate = lr * (min(1, step / lr_warmup) if lr_warmup else 1)
        now = buffers | {
            "l1": buffers["l1"] * (min(1, step / l1_warmup) if l1_warmup else 1),
        }
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in params.items()}
        total, _ = BUILTIN[name].loss(leaves, now, batch)
        found = torch.autograd.grad(total, list(leaves.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in found))
        for key, gradient in zip(leaves, found, strict=True):
            scaled = gradient * min(1, clip / norm)
            params[key] = params[key] + rate * torch.tensor(optimisers[key].update(scaled.numpy()))
    return params


def changes(after: Tensors, before: Pair) -> Tensors:
    return {key: tensor - before[0][key] for key, tensor in after.items()}


# --- the same numbers as a loop


class Variant(NamedTuple):
    """Options of an ensemble of three, and of the loop's three members."""

    options: dict[str, Any]
    alone: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = ({}, {}, {})
    hyper: tuple[dict[str, float], dict[str, float], dict[str, float]] = ({}, {}, {})


CLIPS = [0.05, 0.3, math.inf]
VARIANTS = {
    "plain": Variant({}),
    "lr per member": Variant(
        {"lr": [0.1, 0.01, 0.003]}, ({"lr": 0.1}, {"lr": 0.01}, {"lr": 0.003})
    ),
    "l1 per member": Variant({}, hyper=({"l1": 0.0}, {"l1": 0.01}, {"l1": 1.0})),
    "lr warm-up": Variant({"dynamics": [Dynamics(lr_warmup=8)] * 3}, ({"lr_warmup": 8},) * 3),
    "l1 warm-up": Variant({"dynamics": [Dynamics(l1_warmup=7)] * 3}, ({"l1_warmup": 7},) * 3),
    "clipped": Variant(
        {"grad_clip": torch.tensor(CLIPS, dtype=torch.float64)},
        tuple({"clip": clip} for clip in CLIPS),
    ),
    "other betas": Variant(
        {"optimiser": Optimiser(betas=(0.5, 0.9), eps=1e-3)},
        ({"beta1": 0.5, "beta2": 0.9, "eps": 1e-3},) * 3,
    ),
}


@some
@both
@pytest.mark.parametrize("variant", VARIANTS)
def test_ensemble_is_a_loop_over_its_members(name: str, kernel: str, variant: str) -> None:
    options, alone, hyper = VARIANTS[variant]
    pairs = [member(name, D, N, seed=seed, **h) for seed, h in enumerate(hyper)]
    ensemble = trained(name, pairs, batches(), kernel=kernel, **options)
    for pair, (params, _), own in zip(pairs, ensemble.members(), alone, strict=True):
        expected = loop(name, pair, batches(), **own)
        close(changes(params, pair), changes(expected, pair), 1e-10)


@both
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_bias_decay_is_per_member(name: str, kernel: str) -> None:
    pairs = [member(name, D, N, seed=0, bias_decay=decay) for decay in (0.0, 0.1, 1.0)]
    ensemble = trained(name, pairs, batches(), kernel=kernel)
    for pair, (params, _) in zip(pairs, ensemble.members(), strict=True):
        close(changes(params, pair), changes(loop(name, pair, batches()), pair), 1e-10)
    norms = [float(params["encoder_bias"].norm()) for params, _ in ensemble.members()]
    assert norms == sorted(norms, reverse=True)


@some
@both
def test_a_member_is_the_same_alone_and_among_others(name: str, kernel: str) -> None:
    pairs = members(name, 8)
    among = trained(name, pairs, batches(), kernel=kernel).members()[3][0]
    alone = trained(name, pairs[3:4], batches(), kernel=kernel).members()[0][0]
    close(changes(alone, pairs[3]), changes(among, pairs[3]), 1e-10)


@some
@both
def test_the_cut_into_slices_changes_nothing(
    name: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = members(name, 7)
    found = {}
    for width in (1, 3, 7):
        monkeypatch.setitem(slices.ROOM, "cpu", width * 2 * B * N * 8)
        ensemble = trained(name, pairs, batches(), kernel=kernel)
        assert len(ensemble.states.slices) == math.ceil(7 / width)
        found[width] = ensemble.state_dict()
    for width in (1, 3):
        close(found[width], found[7], 1e-10)


@some
def test_adam_counts_and_corrects_its_bias(name: str) -> None:
    pair = member(name, D, N)
    for steps in (1, 2, 100):
        ensemble = trained(name, [pair], batches(steps), lr=1e-4)
        state = ensemble.state_dict()
        counts = [int(t) for key, t in state.items() if key.startswith("optimiser/count/")]
        assert counts == [steps] * len(pair[0])
        assert int(state["step"]) == steps
        expected = loop(name, pair, batches(steps), lr=1e-4)
        close(changes(ensemble.members()[0][0], pair), changes(expected, pair), 1e-10)


def test_running_means_are_those_of_the_steps() -> None:
    pairs = members("untied", 2)
    ensemble = trained("untied", pairs, batches(), lr=1e-300)  # nothing moves
    for name, means in ensemble.tally.means().items():
        for k, (params, buffers) in enumerate(pairs):
            losses = [BUILTIN["untied"].loss(params, buffers, x) for x in batches()]
            values = [loss.total if name == "loss" else loss.aux[name] for loss in losses]
            assert means[k] == pytest.approx(float(sum(values)) / STEPS, rel=1e-12)


# --- members that stop being finite


POISONS = [
    *((name, poison) for name in ("untied", "affine") for poison in ("l1 NaN", "l1 inf")),
    *((name, "params NaN") for name in ("tied", "batchtopk")),
    *((name, "lr 1e30") for name in ("tied", "untied", "affine")),
]


@both
@pytest.mark.parametrize(("name", "poison"), POISONS)
def test_a_frozen_member_keeps_its_last_finite_state(name: str, kernel: str, poison: str) -> None:
    """Another one in its place, and the others have the very same bits."""
    pairs, stream = members(name, 4, dtype=torch.float32), batches(14, torch.float32)
    rates = [0.01, 0.01, 1e30 if poison == "lr 1e30" else 0.01, 0.01]
    sick = trained(name, pairs, stream[:5], kernel=kernel, lr=rates)
    well = trained(name, pairs, stream[:5], kernel=kernel)
    if poison.startswith("l1"):
        sick.buffers["l1"][2] = float(poison.split()[1])
    if poison == "params NaN":
        sick.params["decoder"][2, 0, 0] = math.nan
    at = {k: v.clone() for k, v in sick.state_dict().items()}
    for batch in stream[5:]:
        sick.step(batch)
        well.step(batch)
    frozen = 1 if poison == "lr 1e30" else 5
    assert sick.health.frozen_at.tolist() == [-1, -1, frozen, -1]
    assert well.health.frozen_at.tolist() == [-1] * 4
    for key, tensor in sick.state_dict().items():
        moves = key.split("/")[0] in ("params", "optimiser") and tensor.dim()
        moves |= key == "buffers/threshold"
        if moves and poison != "params NaN":
            assert tensor[2].isfinite().all(), key
        if key.startswith("params/") or key == "buffers/threshold":
            torch.testing.assert_close(tensor[2], at[key][2], rtol=0, atol=0, equal_nan=True)
        if moves:
            others = [0, 1, 3]
            assert torch.equal(tensor[others], well.state_dict()[key][others]), key
    assert sick.tally.steps.tolist() == [14, 14, frozen, 14]
    assert all(means.isfinite().all() for means in sick.tally.means().values())


# --- saving


@some
def test_state_goes_through_a_file_bit_for_bit(name: str, tmp_path: Path) -> None:
    stream = batches(dtype=torch.float32)
    options = {
        "lr": [0.1, 0.01, 0.02],
        "grad_clip": torch.tensor([0.1, math.inf, 1.0]),
        "dynamics": [Dynamics(lr_warmup=15, l1_warmup=warmup) for warmup in (15, 0, 3)],
    }
    pairs = members(name, 3, dtype=torch.float32)
    through = trained(name, pairs, stream, **options)
    half = trained(name, pairs, stream[: STEPS // 2], **options)
    write_tensors(tmp_path / "state", half.state_dict())
    file = open_tensors(tmp_path / "state")
    others = members(name, 3, dtype=torch.float32, l1=9.0)[::-1]
    again = trained(name, others, [], dynamics=options["dynamics"])
    again.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    for batch in stream[STEPS // 2 :]:
        again.step(batch)
    equal(again.state_dict(), through.state_dict())


# --- what may be stacked


def test_members_of_other_shapes_or_names_are_refused() -> None:
    small, large = member("tied", D, N), member("tied", D, N + 1)
    with pytest.raises(UserError) as error:
        FunctionalEnsemble.from_members(BUILTIN["tied"], [small, small, large])
    text = str(error.value)
    for word in ("member 2, tensor 'decoder'", f"[{N + 1}, {D}]", f"[{N}, {D}]", "of their own"):
        assert word in text
    with pytest.raises(UserError, match=r"member 1\n.*found: *decoder, encoder_bias\n.*encoder"):
        stacking.stack([member("untied", D, N)[0], small[0]])
    with pytest.raises(UserError, match=r"torch\.float32"):
        stacking.stack([small[0], member("tied", D, N, dtype=torch.float32)[0]])


# --- signatures of one's own


class Linear:
    """init and loss alone; answers with a plain tuple."""

    @staticmethod
    def init(d: int, n: int, *, generator: torch.Generator) -> Pair:
        return {"w": torch.randn(n, d, generator=generator, dtype=torch.float64)}, {}

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> tuple[Tensor, Tensors]:
        return (batch @ params["w"].mT @ params["w"] - batch).square().mean(), {}


class Answer(NamedTuple):
    """Another named tuple than the package's own."""

    total: Tensor
    aux: Tensors


class Named(Linear):
    """The same, answering with a named tuple."""

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> Answer:
        return Answer(*Linear.loss(params, buffers, batch))


class Clamped(Linear):
    """With a constraint."""

    @staticmethod
    def project(params: Tensors, buffers: Tensors) -> Tensors:
        return {"w": params["w"].clamp_min(0)}


class Scalar(Linear):
    """No tensor has a shape."""

    @staticmethod
    def init(d: int, n: int, *, generator: torch.Generator) -> Pair:
        return {"w": torch.randn((), generator=generator)}, {}

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> tuple[Tensor, Tensors]:
        return (batch * params["w"] - batch).square().mean(), {}


@pytest.mark.parametrize("signature", [Linear, Named, Clamped, Scalar])
def test_a_class_with_init_and_loss_trains(signature: type[Any]) -> None:
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    pairs = [signature.init(D, N, generator=draw) for draw in draws]
    ensemble = FunctionalEnsemble.from_members(signature, pairs, lr=0.05)
    first = [float(signature.loss(p, b, rows(B, D))[0]) for p, b in ensemble.members()]
    for _ in range(50):
        ensemble.step(rows(B, D))
    last = [float(signature.loss(p, b, rows(B, D))[0]) for p, b in ensemble.members()]
    assert all(after < 0.9 * before for before, after in zip(first, last, strict=True))
    if signature is Clamped:
        assert ensemble.params["w"].min() == 0
    again = FunctionalEnsemble.from_members(signature, pairs)
    again.load_state_dict(ensemble.state_dict())
    equal(again.state_dict(), ensemble.state_dict())
