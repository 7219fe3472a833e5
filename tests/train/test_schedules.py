"""Factors on the learning rate and the penalty, at every step."""

from __future__ import annotations

import pytest
import torch
from ensembles import ensemble, stream
from making import close, equal, members
from reference import factor

from ensemble_sae.errors import UserError
from ensemble_sae.train import Dynamics
from ensemble_sae.train.schedules import Schedule

STEPS = 20
KINDS = [
    {"shape": shape, "warmup": warmup, "end": end}
    for shape in ("constant", "linear", "cosine")
    for warmup in (0, 1, 7)
    for end in (0.0, 0.1, 0.7, 1.0)
]


def dynamics(name: str, shape: str, warmup: int, end: float, steps: int | None = None) -> Dynamics:
    values = {f"{name}_warmup": warmup, f"{name}_schedule": shape, f"{name}_end": end}
    return Dynamics(**values, schedule_steps=steps)


@pytest.mark.parametrize("name", ["lr", "l1"])
def test_values_at_every_step_are_those_of_the_formula(name: str) -> None:
    schedule = Schedule.of(name, [dynamics(name, **kind) for kind in KINDS], STEPS)
    for step in range(STEPS + 5):
        expected = [factor(step + 1, steps=STEPS, **kind) for kind in KINDS]
        assert schedule.factor(step).tolist() == pytest.approx(expected, rel=1e-14, abs=1e-15)


def test_the_last_step_is_at_the_end_exactly() -> None:
    falling = [kind for kind in KINDS if kind["shape"] != "constant"]
    ends = [*falling, {"shape": "linear", "warmup": 3, "end": 2.5}]
    schedule = Schedule.of("l1", [dynamics("l1", **kind) for kind in ends], STEPS)
    for step in (STEPS - 1, STEPS, 10 * STEPS):
        assert schedule.factor(step).tolist() == [kind["end"] for kind in ends]


def test_members_may_end_at_steps_of_their_own() -> None:
    each = [dynamics("lr", "linear", 0, 0.0, steps) for steps in (4, None, 40)]
    schedule = Schedule.of("lr", each, STEPS)
    assert schedule.factor(3).tolist() == pytest.approx([0, 0.8, 0.9])
    assert schedule.factor(19).tolist() == pytest.approx([0, 0, 0.5])


def test_nothing_is_computed_where_nothing_changes() -> None:
    assert Schedule.of("lr", [Dynamics(lr_end=0.5)] * 2, None).factor(3) is None


@pytest.mark.parametrize("name", ["lr", "l1"])
def test_a_schedule_must_know_its_end(name: str) -> None:
    pairs = members("untied", 1, 6, 9)
    with pytest.raises(UserError, match=f"{name}_schedule"):
        ensemble("untied", pairs, {f"{name}_schedule": "linear"})
    ensemble("untied", pairs, {f"{name}_schedule": "linear"}, steps=9)
    ensemble("untied", pairs, {f"{name}_schedule": "linear", "schedule_steps": 9})
    ensemble("untied", pairs, {f"{name}_warmup": 9})


@pytest.mark.parametrize("kernel", ["generic", "auto"])
@pytest.mark.parametrize(("name", "penalty"), [("untied", "l1"), ("jumprelu", "l0_coefficient")])
def test_an_ensemble_on_schedule_is_one_whose_numbers_are_set_by_hand(
    name: str, penalty: str, kernel: str
) -> None:
    lr = [
        {"shape": "cosine", "warmup": 3, "end": 0.2},
        {"shape": "linear", "warmup": 0, "end": 0.0},
    ]
    l1 = [
        {"shape": "constant", "warmup": 5, "end": 0.0},
        {"shape": "linear", "warmup": 2, "end": 3},
    ]
    each = [
        {**dynamics("lr", **a).model_dump(exclude_unset=True), **_of_l1(b)}
        for a, b in zip(lr, l1, strict=True)
    ]
    pairs, steps = members(name, 2, 6, 9), 12
    found = ensemble(name, pairs, *each, steps=steps, kernel=kernel)
    by_hand = ensemble(name, pairs, kernel=kernel)
    for step, batch in enumerate(stream(steps), 1):
        for k in range(2):
            by_hand.lr[k] = 0.01 * factor(step, steps=steps, **lr[k])
            whole = pairs[k][1][penalty]
            by_hand.buffers[penalty][k] = whole * factor(step, steps=steps, **l1[k])
        found.step(batch)
        by_hand.step(batch)
        close(found.params, by_hand.params, 1e-12)
    equal(found.buffers, ensemble(name, pairs).buffers)  # the penalty itself stays what it was


def _of_l1(kind: dict) -> dict:
    kind = {**kind, "end": float(kind["end"])}
    return dynamics("l1", **kind).model_dump(include={"l1_warmup", "l1_schedule", "l1_end"})


def test_warm_up_rises_in_equal_parts() -> None:
    schedule = Schedule.of("lr", [Dynamics(lr_warmup=4), Dynamics()], None)
    found = torch.stack([schedule.factor(step) for step in (0, 2, 3, 100)])
    assert found.tolist() == [[0.25, 1], [0.75, 1], [1, 1], [1, 1]]
