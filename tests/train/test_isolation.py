"""No mechanism of a member touches its neighbour, and each goes on where it was interrupted."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from ensembles import B, D, N, ensemble, of_member, stepped, stream
from making import Pair, close, equal, members

from ensemble_sae.train import FunctionalEnsemble, slices

STEPS, CUT = 10, 5
MECHANISMS: dict[str, dict[str, Any]] = {
    "lr schedule": {"lr_warmup": 2, "lr_schedule": "cosine", "schedule_steps": 8},
    "l1 schedule": {"l1_warmup": 2, "l1_schedule": "linear", "l1_end": 3.0},
    "set-point": {"target_l0": 2.0, "target_rate": 0.3},
    "averaging": {"ema": 0.9},
    "resampling": {"resample": "loss", "dead_after": 2, "resample_every": 3},
    "random resampling": {"resample": "random", "dead_after": 2, "resample_every": 3},
    "averaged resampling": {"ema": 0.9, "resample": "loss", "dead_after": 2, "resample_every": 3},
    "freezing": {"freeze_every": 3, "freeze_at": 0.995, "dead_after": 2},
    "finishing": {"freeze_every": 3, "freeze_at": 1e-6},
    "remove parallel": {"remove_parallel": True},
    "after resampling freezing": {
        **{"resample": "loss", "dead_after": 2, "resample_every": 3, "resample_until": 6},
        **{"freeze_every": 2, "freeze_from": 6, "freeze_at": 0.99},
    },
}
KINDS = {
    "untied": ("untied", {}),
    "projected": ("untied", {"unit_norm": "project", "decoder_bias": True}),
    "jumprelu": ("jumprelu", {"revive": "aux_k", "aux_k": 2.0, "aux_weight": 0.3}),
}
every = pytest.mark.parametrize("mechanism", MECHANISMS)
kinds = pytest.mark.parametrize("kind", KINDS)


def pairs_of(kind: str, count: int = 2, dtype: torch.dtype = torch.float64) -> list[Pair]:
    """Members with features that hardly ever fire, not even when they begin anew."""
    name, options = KINDS[kind]
    pairs = members(name, count, D, N, dtype=dtype, **options)
    for params, _ in pairs:
        params["encoder_bias"][:3] -= 6.0
    return pairs


def made(kind: str, pairs: list[Pair], *dynamics: dict) -> FunctionalEnsemble:
    return ensemble(KINDS[kind][0], pairs, *dynamics, steps=STEPS, lr=0.02)


@functools.cache
def trained(kind: str, mechanism: str | None, width: int) -> FunctionalEnsemble:
    """A member with a mechanism, or without, and a plain one beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(slices.ROOM, "cpu", width * 2 * B * N * 8)
        found = made(kind, pairs_of(kind), MECHANISMS[mechanism] if mechanism else {})
    assert len(found.states.slices) == 2 / width
    return stepped(found, stream(STEPS))


SLICED = [("untied", 1), ("untied", 2), ("projected", 2), ("jumprelu", 2)]


@every
@pytest.mark.parametrize(("kind", "width"), SLICED)
def test_none_may_touch_a_neighbour(mechanism: str, kind: str, width: int) -> None:
    beside, plain = trained(kind, mechanism, width), trained(kind, None, width)
    groups = ("params", "buffers", "optimiser", "tally", "health")
    equal(*(of_member(e.state_dict(), 1, *groups) for e in (beside, plain)))
    assert torch.equal(beside.evaluated()["decoder"][1], plain.evaluated()["decoder"][1])
    own, others = ([t[0] for t in e.evaluated().values()] for e in (beside, plain))
    assert any(not torch.equal(a, b) for a, b in zip(own, others, strict=True))


@every
def test_a_member_is_the_same_alone_and_beside_others(mechanism: str) -> None:
    pairs, dynamics = pairs_of("untied", 3), MECHANISMS[mechanism]
    alone = stepped(made("untied", pairs[:1], dynamics), stream(STEPS))
    others = ({"ema": 0.5}, {"target_l0": 3.0})
    among = stepped(made("untied", pairs, dynamics, *others), stream(STEPS))
    for part in (lambda e: e.params, lambda e: e.evaluated()):
        one, other = ({k: t[0] for k, t in part(e).items()} for e in (alone, among))
        close(one, other, 1e-8)
    assert alone.health.finished_at[0] == among.health.finished_at[0]


@every
@kinds
def test_what_was_interrupted_goes_on_with_the_same_bits(
    mechanism: str, kind: str, tmp_path: Path
) -> None:
    pairs, batches = pairs_of(kind, dtype=torch.float32), stream(STEPS, dtype=torch.float32)
    dynamics = [MECHANISMS[mechanism], {"ema": 0.5}]
    through = stepped(made(kind, pairs, *dynamics), batches[:CUT])
    through.save(tmp_path / "e.safetensors")
    loaded = FunctionalEnsemble.load(tmp_path / "e.safetensors")
    again = made(kind, pairs[::-1], *dynamics)
    again.load_state_dict({k: t.clone() for k, t in through.state_dict().items()})
    for found in (through, loaded, again):
        stepped(found, batches[CUT:])
    equal(loaded.state_dict(), through.state_dict())
    equal(again.state_dict(), through.state_dict())
    equal(loaded.evaluated(), through.evaluated())


@pytest.mark.parametrize("mechanism", ["resampling", "freezing"])
def test_the_mechanisms_are_at_work_on_both_sides_of_the_cut(mechanism: str) -> None:
    found = made("untied", pairs_of("untied"), MECHANISMS[mechanism])
    seen = []
    for batch in stream(STEPS):
        found.step(batch)
        if mechanism == "freezing":
            seen.append(int(found.mechanisms.freezing.frozen.sum()))
        else:
            seen.append(int(found.resample([batch]).sum()))
    if mechanism == "freezing":
        assert 0 < seen[CUT - 1] < seen[-1] < N
    else:
        assert any(seen[:CUT])
        assert any(seen[CUT:])
