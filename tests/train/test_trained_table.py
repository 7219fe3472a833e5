"""Every signature of the table in an ensemble: as a loop, alone, saved and continued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from making import Pair, close, copied, equal, members, rows
from reference import CASES, Adam, Case
from reference.cases import FRAMES, REVIVED
from torch import Tensor
from torch.func import grad_and_value, vmap

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.signatures import BUILTIN, Tensors
from ensemble_sae.train import FunctionalEnsemble
from ensemble_sae.train.draws import draws

D, N, B, STEPS, LR, SEED, DEAD_AFTER = 5, 8, 11, 3, 0.01, 3, 2
TOGETHER = {*FRAMES, *REVIVED} - {"plain", "pre_act"}  # these are so in "everything"


def in_short(cases: list[Case]) -> list[Case]:
    ids = {case.id for case in cases}
    covered = TOGETHER | ({"everything"} if "everything revived" in ids else set())
    return [case for case in cases if case.id not in covered]


TABLE = [
    pytest.param(name, case, id=f"{name}: {case.id}")
    for name, cases in CASES.items()
    for case in in_short(cases)
]
every_case = pytest.mark.parametrize(("name", "case"), TABLE)


def batches(first: int = 0, count: int = STEPS) -> list[Tensor]:
    return [rows(B, D, seed=100 + step) for step in range(first, first + count)]


def pairs_of(name: str, case: Case, count: int) -> list[Pair]:
    """Members of which two features are silent or nearly so, to be dead after a while."""
    pairs = members(name, count, D, N, case=case)
    for params, _ in pairs:
        for bias in params.keys() & {"encoder_bias", "gate_bias"}:
            params[bias][:2] -= 3.0
    return pairs


def ensemble_of(name: str, pairs: Sequence[Pair], kernel: Any = "generic") -> FunctionalEnsemble:
    return FunctionalEnsemble.from_members(
        BUILTIN[name],
        [copied(pair) for pair in pairs],
        lr=LR,
        batch_size=B,
        kernel=kernel,
        seed=SEED,
        dynamics=[Dynamics(dead_after=DEAD_AFTER)] * len(pairs),
    )


def stepped(ensemble: FunctionalEnsemble, stream: Sequence[Tensor]) -> FunctionalEnsemble:
    for batch in stream:
        ensemble.step(batch)
    return ensemble


def loop(name: str, pair: Pair, stream: Sequence[Tensor]) -> Pair:
    """One member trained by itself, without vmap, torchopt or stacking."""
    signature, (params, buffers) = BUILTIN[name], copied(pair)
    adams = {key: Adam(LR) for key in params}
    silent = torch.zeros(N)
    for step, batch in enumerate(stream):
        now = seen_by_the_loss(name, buffers, step, silent)
        slopes, (_, aux) = grad_and_value(
            lambda p, now=now, x=batch: tuple(signature.loss(p, now, x)), has_aux=True
        )(params)
        for key, slope in slopes.items():
            params[key] = params[key] + torch.tensor(adams[key].update(slope.numpy()))
        params = signature.project(params, buffers)
        silent = torch.where(aux["fired"] > 0, 0.0, silent + 1)
        for key in aux.keys() & {"buffers/threshold"}:
            buffers[key.removeprefix("buffers/")] = aux[key]
    return params, buffers


def seen_by_the_loss(name: str, buffers: Tensors, step: int, silent: Tensor) -> Tensors:
    like = torch.zeros((), dtype=torch.float64)
    now = buffers | draws(BUILTIN[name], B, N, seed=SEED, step=step, like=like)
    if "step" in now:
        now["step"] = torch.tensor(float(step), dtype=torch.float64)
    if "dead" in now:
        there = now.get("mask", torch.ones(N)) > 0
        now["dead"] = ((silent >= DEAD_AFTER) & there).double()
    return now


def changes(after: Tensors, before: Pair) -> Tensors:
    return {key: tensor - before[0][key] for key, tensor in after.items()}


def without_kept(buffers: Tensors) -> Tensors:
    """What is the member's own: `dead` and `step` are what the ensemble counts."""
    return {key: tensor for key, tensor in buffers.items() if key not in ("dead", "step")}


@every_case
def test_an_ensemble_is_a_loop_over_its_members(name: str, case: Case) -> None:
    pairs = pairs_of(name, case, 2)
    expected = [loop(name, pair, batches()) for pair in pairs]
    for kernel in ("generic", "auto"):
        ensemble = stepped(ensemble_of(name, pairs, kernel), batches())
        for pair, found, wanted in zip(pairs, ensemble.members(), expected, strict=True):
            close(changes(found[0], pair), changes(wanted[0], pair), 1e-8)
            close(without_kept(found[1]), without_kept(wanted[1]), 1e-12)
        if "dead" in ensemble.buffers:
            assert ensemble.mechanisms.dead.any()


@every_case
def test_a_member_is_the_same_alone_and_among_others(name: str, case: Case) -> None:
    pairs = pairs_of(name, case, 8)
    ensemble = stepped(ensemble_of(name, pairs), batches())
    among = ensemble.members()[3]
    alone = stepped(ensemble_of(name, pairs[3:4]), batches()).members()[0]
    close(changes(alone[0], pairs[3]), changes(among[0], pairs[3]), 1e-8)
    close(alone[1], among[1], 1e-12)
    constraints_hold(name, case, ensemble)


def constraints_hold(name: str, case: Case, ensemble: FunctionalEnsemble) -> None:
    decoder = ensemble.params["decoder"]
    directions = vmap(BUILTIN[name].dictionary)(ensemble.params, ensemble.buffers)
    if case.options.get("unit_norm") == "project":
        torch.testing.assert_close(decoder, directions, rtol=1e-14, atol=1e-15)
    if name == "positive":
        assert decoder.min() >= 0
    norms = directions.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-14, atol=0)


@every_case
def test_saved_and_continued_has_the_same_bits(name: str, case: Case, tmp_path: Path) -> None:
    pairs, later = pairs_of(name, case, 2), batches(first=STEPS, count=2)
    through = stepped(ensemble_of(name, pairs, "auto"), batches())
    through.save(tmp_path / "e.safetensors")
    loaded = FunctionalEnsemble.load(tmp_path / "e.safetensors")
    copy = ensemble_of(name, [copied(pair) for pair in pairs], "auto")
    copy.load_state_dict(through.state_dict())
    for ensemble in (through, loaded, copy):
        stepped(ensemble, later)
    equal(loaded.state_dict(), through.state_dict())
    equal(copy.state_dict(), through.state_dict())


@pytest.mark.parametrize("case", CASES["masked"], ids=lambda c: c.id)
@pytest.mark.parametrize("dies", [True, False], ids=["some die", "all live"])
def test_a_padded_member_trains_as_it_does_unpadded(case: Case, dies: bool) -> None:
    pairs = members("masked", 2, D, N, case=case)
    for params, buffers in pairs:
        params["encoder_bias"][:2] -= 3.0 if dies else 0.0
        params["encoder_bias"] += 0.0 if dies else 3.0
        buffers["mask"].fill_(1.0)
    wide = [BUILTIN["masked"].pad(*pair, N + 3) for pair in pairs]
    narrow, padded = (stepped(ensemble_of("masked", p), batches(count=5)) for p in (pairs, wide))
    if "dead" in narrow.buffers:
        assert narrow.mechanisms.dead.any() == dies
    features = BUILTIN["masked"].FEATURES
    cut = {k: t[:, :N] if k in features else t for k, t in padded.params.items()}
    close(cut, narrow.params, 1e-10)
    assert all(not padded.params[key][:, N:].any() for key in features)
    close(padded.tally.means(), narrow.tally.means(), 1e-12)
