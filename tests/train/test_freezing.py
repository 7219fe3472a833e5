"""Features that are stable are left as they are; the parallel gradient is taken out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ensembles import D, N, ensemble, of_member, stepped, stream
from making import equal, members, rows
from reference import frozen_features
from torch import Tensor
from torch.func import vmap

from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import FunctionalEnsemble, Optimiser
from ensemble_sae.train.constraints import remove_parallel

EVERY, AT, DEAD_AFTER = 3, 0.992, 2
FREEZE = {"freeze_every": EVERY, "freeze_at": AT, "dead_after": DEAD_AFTER}
KINDS = {
    "untied": ("untied", {}),
    "tied": ("tied", {}),
    "affine": ("affine", {"centring": "learned"}),
    "projected": ("untied", {"unit_norm": "project"}),
    "positive": ("positive", {"tied": False, "unit_norm": "project"}),
    "jumprelu": ("jumprelu", {}),
}
every = pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
both = pytest.mark.parametrize("kernel", ["generic", "auto"])


def directions(found: FunctionalEnsemble) -> Any:
    return vmap(BUILTIN[found.signature.__name__.lower()].dictionary)(
        found.params, found.buffers
    ).numpy()


@every
@both
@pytest.mark.parametrize(("optimiser", "lr"), [("adamw", 0.05), ("sgd", 0.12)])
def test_stable_features_keep_their_bits(
    name: str, options: dict, kernel: str, optimiser: str, lr: float
) -> None:
    chosen = Optimiser(optimiser, weight_decay=0.01)
    pairs = members(name, 2, D, N, dtype=torch.float32, **options)
    found = ensemble(name, pairs, FREEZE, lr=lr, kernel=kernel, optimiser=chosen)
    before, frozen, held, sizes = directions(found)[0], set(), {}, []
    for step, batch in enumerate(stream(10, dtype=torch.float32), 1):
        moved = {k: t[0].clone() for k, t in found.params.items()}
        found.step(batch)
        now = {k: t[0] for k, t in found.params.items()}
        for feature, tensors in held.items():
            equal(_feature(found, now, feature), tensors)
        for feature in set(range(N)) - frozen:
            assert now["encoder_bias"][feature] != moved["encoder_bias"][feature]
        if step % EVERY == 0:
            after = directions(found)[0]
            frozen |= frozen_features(before, after, found.mechanisms.dead[0].numpy(), AT)
            before = after
            held = {feature: _feature(found, now, feature) for feature in frozen}
        assert set(found.mechanisms.freezing.frozen[0].nonzero()[:, 0].tolist()) == frozen
        sizes.append(len(frozen))
    assert any(0 < size < N for size in sizes[:-1])  # some were held while others moved
    assert not found.mechanisms.freezing.frozen[1].any()


def _feature(found: FunctionalEnsemble, params: dict[str, Tensor], feature: int) -> dict:
    return {k: params[k][feature].clone() for k in found.mechanisms.features if k in params}


def test_no_feature_is_frozen_too_early() -> None:
    pairs = members("untied", 2, D, N)
    dynamics = {"freeze_every": 2, "freeze_at": 1e-6, "freeze_from": 5}
    found, stepwise = ensemble("untied", pairs, dynamics), []
    for batch in stream(7):
        found.step(batch)
        stepwise.append(bool(found.mechanisms.freezing.frozen.any()))
    assert stepwise == [False] * 5 + [True] * 2


def test_a_look_compares_with_the_look_before_and_not_with_the_start() -> None:
    pairs = members("untied", 1, D, N)
    found = ensemble("untied", pairs, {"freeze_every": 2, "freeze_from": 100})
    for step, batch in enumerate(stream(5), 1):
        found.step(batch)
        if step == 4:
            last = directions(found)
    assert torch.equal(found.mechanisms.freezing.before, torch.tensor(last))


def test_dead_features_are_not_frozen() -> None:
    found = ensemble("untied", members("untied", 2, D, N), {**FREEZE, "freeze_at": 1e-6})
    found.params["encoder_bias"][:, :2] = -50.0
    for batch in stream(EVERY):
        found.step(batch)
    dead = found.mechanisms.dead[0]
    assert dead[:2].all()
    assert torch.equal(found.mechanisms.freezing.frozen[0], ~dead)
    assert found.health.finished_at.tolist() == [-1, -1]


@both
@pytest.mark.parametrize("options", [{}, {"decoder_bias": True, "unit_norm": "project"}], ids=str)
def test_a_member_without_anything_to_learn_is_finished(options: dict, kernel: str) -> None:
    pairs = members("affine", 3, D, N, centring="learned", **options)
    for params, _ in pairs:
        params["encoder_bias"] += 3.0  # no feature dies
    slow = {"freeze_every": 4, "freeze_at": 1e-6}
    found = ensemble("affine", pairs, slow, {}, {**slow, "freeze_from": 8}, kernel=kernel)
    expected = {4: [4, -1, -1], 8: [4, -1, 8]}
    states = {}
    for step, batch in enumerate(stream(12), 1):
        found.step(batch)
        if step in expected:
            assert found.health.finished_at.tolist() == expected[step]
            states[step] = found.state_dict() | {k: t.clone() for k, t in found.params.items()}
            states[step] = {k: t.clone() for k, t in states[step].items()}
    for name, tensor in found.params.items():
        assert torch.equal(tensor[0], states[4][name][0])
        assert torch.equal(tensor[2], states[8][name][2])
        assert not torch.equal(tensor[1], states[8][name][1])
    assert found.tally.steps.tolist() == [4, 12, 8]
    assert found.health.alive.tolist() == [False, True, False]
    assert found.health.frozen_at.tolist() == [-1] * 3


def test_a_member_that_broke_is_not_finished() -> None:
    found = ensemble("untied", members("untied", 2, D, N), {**FREEZE, "dead_after": 100})
    found.buffers["l1"][0] = math.nan
    stepped(found, stream(8))
    assert found.health.frozen_at.tolist() == [0, -1]
    assert found.health.finished_at.tolist() == [-1, -1]


def test_padding_counts_as_frozen() -> None:
    pairs = members("masked", 2, D, N)
    for params, _ in pairs:
        params["encoder_bias"] += 3.0
    found = ensemble("masked", pairs, {"freeze_every": 4, "freeze_at": 1e-6})
    assert torch.equal(found.mechanisms.freezing.frozen, found.buffers["mask"] == 0)
    stepped(found, stream(4))
    assert found.health.finished_at.tolist() == [4, -1]


# --- the parallel part of the gradient


def test_chosen_members_lose_the_part_along_their_rows() -> None:
    decoder = rows(3 * N, D).view(3, N, D)
    decoder[0, 0] = 0
    gradient = rows(3 * N, D, seed=1).view(3, N, D)
    found = {"decoder": gradient.clone(), "encoder": gradient.clone()}
    remove_parallel(found, {"decoder": decoder}, torch.tensor([True, False, True]))
    for k in (0, 2):
        for g, found_row, row in zip(gradient[k], found["decoder"][k], decoder[k], strict=True):
            unit = row / row.norm() if row.any() else row
            torch.testing.assert_close(found_row, g - (g @ unit) * unit, rtol=1e-12, atol=1e-14)
    assert torch.equal(found["decoder"][1], gradient[1])
    assert torch.equal(found["encoder"], gradient)


@pytest.mark.parametrize(
    ("name", "options"), [("crosscoder", {}), ("untied", {"unit_norm": "project"})], ids=str
)
def test_an_update_turns_rows_and_does_not_stretch_them(name: str, options: dict) -> None:
    pairs = members(name, 2, D, N, **options)
    plain = Optimiser("sgd", momentum=0.0)
    found = ensemble(name, pairs, {"remove_parallel": True}, lr=1e-3, optimiser=plain)
    found._project = None
    before = found.params["decoder"].clone()
    found.step(stream(1)[0])
    moved = found.params["decoder"] - before
    along = (moved * before).sum(-1).abs() / (moved.norm(dim=-1) * before.norm(dim=-1) + 1e-30)
    assert along[0].max() < 1e-10
    assert along[1].max() > 1e-2


def test_where_the_loss_normalises_nothing_is_parallel() -> None:
    pairs = members("untied", 2, D, N)
    states = []
    for dynamics in ({"remove_parallel": True}, {}):
        found = stepped(ensemble("untied", pairs, dynamics), stream(5))
        states.append(of_member(found.state_dict(), 0, "params"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-9, atol=1e-11)
