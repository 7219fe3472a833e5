"""A penalty that moves until L0 is what was asked for."""

from __future__ import annotations

import math

import pytest
import torch
from ensembles import ensemble, of_member, stream
from making import equal, members
from reference import SetPoint as ReferenceSetPoint
from torch import Tensor

from ensemble_sae.randomness import generator
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import Dynamics, FunctionalEnsemble
from ensemble_sae.train.setpoint import SetPoint


def test_the_controller_is_a_loop() -> None:
    targets, rates = [3.0, 20.0, math.nan], [0.01, 0.3, 0.2]
    found = SetPoint(*(torch.tensor(t, dtype=torch.float64) for t in (targets, rates)))
    expected = [ReferenceSetPoint(t, r) for t, r in zip(targets[:2], rates[:2], strict=True)]
    draw = generator(0, "test set-point")
    for _ in range(50):
        l0 = 60 * torch.rand(3, generator=draw, dtype=torch.float64)
        found.observe(0, 2, l0[:2], None)
        found.observe(2, 3, l0[2:], None)
        for k, member in enumerate(expected):
            member.observe(float(l0[k]))
        assert found.factor[:2].tolist() == pytest.approx([m.factor for m in expected], rel=1e-12)
        assert found.running[:2].tolist() == pytest.approx([m.running for m in expected], rel=1e-12)
    assert found.factor[2] == 1


def test_members_that_no_longer_move_keep_their_penalty() -> None:
    found = SetPoint(torch.tensor([3.0, 3.0]), torch.tensor([0.1, 0.1]))
    found.observe(0, 2, torch.tensor([30.0, math.nan]), torch.tensor([True, False]))
    assert found.factor[0] > 1
    assert found.factor[1] == 1
    assert found.running[1] == 3


@pytest.mark.parametrize(("name", "penalty"), [("untied", "l1"), ("jumprelu", "l0_coefficient")])
def test_the_loss_sees_the_moved_penalty(name: str, penalty: str) -> None:
    pairs = members(name, 2, 6, 9)
    found = ensemble(name, pairs, {"target_l0": 1.0, "target_rate": 0.2}, kernel="generic")
    for batch in stream(6):
        expected = [
            float(pairs[k][1][penalty] * found.mechanisms.setpoint.factor[k]) for k in (0, 1)
        ]
        seen = found.mechanisms.buffers(found.buffers, found.step_count, {})
        assert seen[penalty].tolist() == pytest.approx(expected, rel=1e-15)
        found.step(batch)
    assert found.mechanisms.setpoint.factor[0] > 1.1
    assert found.buffers[penalty].tolist() == [float(pair[1][penalty]) for pair in pairs]


def sparse_rows(count: int, step: int) -> Tensor:
    """Sums of 24 directions of which each is there with a probability of 1/6, by itself."""
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator(0, "at")))
    draw = generator(1, "rows", step)
    there = torch.rand(count, 24, generator=draw) < 1 / 6
    return (there * torch.rand(count, 24, generator=draw)) @ directions


def test_members_reach_their_targets() -> None:
    name, targets = "untied", [3.0, 6.0, None]
    pairs = [BUILTIN[name].init(16, 32, generator=generator(0, "start")) for _ in targets]
    found = FunctionalEnsemble.from_members(
        BUILTIN[name],
        pairs,
        lr=3e-3,
        batch_size=128,
        dynamics=[Dynamics(target_l0=t, target_rate=0.02) for t in targets],
    )
    for step in range(600):
        if step == 500:
            found.tally.reset()
        found.step(sparse_rows(128, step))
    l0 = found.tally.means()["l0"].tolist()
    assert l0[:2] == pytest.approx(targets[:2], rel=0.15)
    assert l0[2] > 6.9


@pytest.mark.parametrize("kernel", ["generic", "auto"])
def test_a_neighbour_without_a_target_has_the_same_bits(kernel: str) -> None:
    pairs, states = members("untied", 2, 6, 9), []
    for dynamics in ({"target_l0": 1.0, "target_rate": 0.5}, {}):
        found = ensemble("untied", pairs, dynamics, kernel=kernel)
        for batch in stream(15):
            found.step(batch)
        states.append(of_member(found.state_dict(), 1, "params", "optimiser", "tally"))
    equal(*states)
