"""Members onto devices."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ensemble_sae.dispatch.cost import member_flop
from ensemble_sae.dispatch.devices import GIB, Device
from ensemble_sae.dispatch.memory import BASE
from ensemble_sae.dispatch.planner import Plan, plan
from ensemble_sae.errors import UserError
from ensemble_sae.run import Position
from ensemble_sae.sweep import Member, groups_of


def member(id: int, n_dict: int, **values: Any) -> Member:
    known: dict[str, Any] = {
        "id": id,
        "name": f"member {id}",
        "signature": "tied",
        "hook": "a",
        "d_activation": 16,
        "n_dict": n_dict,
        "dict_ratio": n_dict / 16,
        "lr": 1e-3,
        "grad_clip": None,
        "seed": 0,
        "hyperparameters": {"l1": 1e-3},
    }
    return Member(**known | values)


def random_members(draw: random.Random) -> list[Member]:
    count = draw.randrange(1, 120)
    shapes = [draw.choice([8, 16, 32, 64, 128, 1024]) for _ in range(draw.randrange(1, 6))]
    return [
        member(
            id,
            draw.choice(shapes),
            signature=draw.choice(["tied", "untied"]),
            hook=draw.choice(["a", "b"]),
        )
        for id in range(count)
    ]


def devices(count: int, memory: int = 8 * GIB) -> list[Device]:
    return [Device("cpu", index, memory, 1) for index in range(count)]


def planned(members: list[Member], count: int, places: Any = None, memory: int = 8 * GIB) -> Plan:
    groups = groups_of(members, places)
    parameters = {group.name: 2 * group.n_dict * group.d_activation for group in groups}
    return plan(groups, devices(count, memory), batch_size=64, parameters=parameters, chunk_bytes=1)


@pytest.mark.parametrize("seed", range(40))
def test_every_member_once_and_equal_work(seed: int) -> None:
    draw = random.Random(seed)
    members, count = random_members(draw), draw.randrange(1, 9)
    made = planned(members, count)
    placed = [m.id for tasks in made.tasks for task in tasks for m in task.members]
    assert sorted(placed) == [m.id for m in members]
    assert all(made.tasks)
    work = [made.flop_per_step(index) for index in range(len(made.devices))]
    share = sum(work) / count
    largest = max(member_flop(m, 64) for m in members)
    assert max(work) <= share + largest * 1.0001
    pieces = sum(len(tasks) for tasks in made.tasks)
    assert pieces <= len(groups_of(members)) + count - 1, "at most count - 1 groups are split"


@pytest.mark.parametrize("seed", range(20))
def test_an_interruption_that_splits_groups_moves_no_member(seed: int) -> None:
    draw = random.Random(seed)
    members = random_members(draw)
    before = planned(members, 3)
    places = {
        m.id: Position(2, 5 * index + 3)
        for index, tasks in enumerate(before.tasks)
        for task in tasks
        for m in task.members
    }
    after = planned(members, 3, places)
    assert [[[m.id for m in task.members] for task in tasks] for tasks in after.tasks] == [
        [[m.id for m in task.members] for task in tasks] for tasks in before.tasks
    ]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"(?s)Member 1 \(member 1\).*GiB needed, 0.4 GiB there"):
        planned([member(0, 8), member(1, 100_000)], 1, memory=GIB // 64 + BASE["cpu"])
    with pytest.raises(UserError, match=r"(?s)^3000 members.*cpu:0.*largest is member"):
        planned([member(id, 1024) for id in range(3000)], 1, memory=GIB // 4 + BASE["cpu"])


def test_a_target_costs_what_the_decoder_does() -> None:
    plain, twice = member(0, 32), member(1, 32, d_activation=32, widths=(16, 16))
    assert member_flop(plain, 8) == 10 * 8 * 32 * 16
    assert member_flop(twice, 8) == 10 * 8 * 32 * 32
    other = member(2, 32, hook="a -> b", widths=(16, 4))
    assert other.d_target == 4
    assert member_flop(other, 8) == 2 * 8 * 32 * (2 * 16 + 3 * 4)


def test_joined_rows_are_copies_on_a_cpu_too() -> None:
    groups = groups_of([member(0, 8)])
    parameters = {group.name: 256 for group in groups}
    memory = {}
    for joined in (0, 10**6):
        sizes = {"chunk_bytes": 10**7, "joined_bytes": joined}
        made = plan(groups, devices(1), batch_size=64, parameters=parameters, **sizes)
        memory[joined] = made.memory(0)
    assert memory[10**6] - memory[0] == 2 * 10**6
