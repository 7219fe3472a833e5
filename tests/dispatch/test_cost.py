"""Seconds and bytes of a step: counted by hand, and how they grow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_planner import member

from ensemble_sae.dispatch import memory
from ensemble_sae.dispatch.cost import PRICES, Price, Speeds, Stack, Work, work_of
from ensemble_sae.dispatch.devices import Device
from ensemble_sae.dispatch.speeds import Probes, measure
from ensemble_sae.dispatch.ways import FEW, stacks_of
from ensemble_sae.kernels.choice import ABOVE
from ensemble_sae.signatures.relu import Untied
from ensemble_sae.sweep import groups_of
from ensemble_sae.train import FunctionalEnsemble

D, N, B = 16, 32, 64
FLOP, PARAMETERS = 10.0 * B * N * D, 2 * N * D + N
SPEEDS = Speeds(product=1e9, cached=1e8, memory=1e7, step=1e-3)
every_way = pytest.mark.parametrize("way", PRICES)


def stack(members: int = 4, way: Any = "dense", **values: Any) -> Stack:
    known = {"rows": B, "n_dict": N, "width": D, "flop": FLOP, "parameters": PARAMETERS}
    return Stack(**{**known, "members": members, "way": way, **values})


def test_work_counted_by_hand() -> None:
    price = Price(slice=2, product=1.5, score=3, row=5, weight=7, entry=11, value=13)
    found = work_of(stack(), price)
    assert found.steps == 2  # four small members are one slice
    assert found.flop == 4 * FLOP * 1.5
    entries = B * N  # all are active
    passes = 3 * B * N + 5 * B + 7 * PARAMETERS + entries * (11 + 13 * D)
    assert found.cached == 4 * passes
    assert found.moved == 4 * 24 * PARAMETERS
    sparse = work_of(stack(way="sparse", density=0.25), price)
    assert sparse.flop == pytest.approx(found.flop / 5), "the encoder's product alone"
    assert found.cached - sparse.cached == 4 * 0.75 * entries * (11 + 13 * D)


def test_seconds_are_a_sum_over_the_speeds() -> None:
    work = Work(steps=2, flop=3e9, cached=4e8, moved=5e7)
    assert work.seconds(SPEEDS) == pytest.approx(2e-3 + 3 + 4 + 5)
    twice = work + work
    assert twice.seconds(SPEEDS) == pytest.approx(2 * work.seconds(SPEEDS))
    assert (work + Work()) == work


@every_way
def test_more_of_anything_takes_longer_and_needs_no_less(way: Any) -> None:
    base = stack(way=way, density=0.1)
    larger = [
        replace(base, members=400),
        replace(base, rows=2 * B, flop=2 * FLOP),
        replace(base, n_dict=2 * N, flop=2 * FLOP, parameters=2 * PARAMETERS),
        replace(base, width=2 * D, flop=2 * FLOP, parameters=2 * PARAMETERS),
    ]
    for other in larger:
        assert work_of(other).seconds(SPEEDS) > work_of(base).seconds(SPEEDS)
        assert memory.needed([[other]]) > memory.needed([[base]])
    denser = replace(base, density=0.2)
    grows = work_of(denser).seconds(SPEEDS) > work_of(base).seconds(SPEEDS)
    assert grows == (way == "sparse"), "only the sparse kernel's time depends on the density"


def test_few_active_features_are_faster_sparse_and_many_dense() -> None:
    speeds = Speeds(product=9e10, cached=7.5e10, memory=3e10, step=6e-4)
    shape = {"rows": 512, "n_dict": 2048, "width": 512}
    shape |= {"flop": 10.0 * 512 * 2048 * 512, "parameters": 2 * 2048 * 512}

    def seconds(way: Any, density: float) -> float:
        return work_of(stack(8, way, density=density, **shape)).seconds(speeds)

    assert seconds("sparse", 0.02) < seconds("dense", 0.02) < seconds("sparse", 0.5)


def test_a_worker_keeps_twelve_bytes_per_parameter_and_its_arrays() -> None:
    one = stack(1)
    arrays = PARAMETERS + 4 * N * D + 2 * B * (N + D)
    assert memory.working(one) == 4 * arrays
    assert memory.weights(one) == 4 * PARAMETERS
    joined = 8 * PARAMETERS  # the moments, once more, for a checkpoint
    expected = 12 * PARAMETERS + 4 * arrays + joined + memory.OTHER
    assert memory.needed([[one]]) == expected
    apart = memory.needed([[one]]) - memory.OTHER - joined
    assert memory.needed([[one], [one]]) == 2 * apart + joined + memory.OTHER
    assert memory.needed([]) == memory.OTHER


def test_both_widths_of_slices_have_arrays() -> None:
    wide = {"rows": 4096, "n_dict": 128, "flop": 0.0, "parameters": 0, "width": 1}
    assert stack(5, **wide).slices == [2, 3]
    each = 4 * (4 * 128 + 2 * 4096 * (128 + 1))
    assert memory.working(stack(5, **wide)) == (2 + 3) * each


def test_memory_of_the_sparse_way() -> None:
    one = stack(3, "sparse", density=0.25)
    residual, starts_and_sums = B * D, 3 * N
    lists = 1.5 * 3 * B * 0.25 * N
    scores = B * (3 * N + 2) + 32 * N  # scores, columns, slopes; counts; room to sort
    assert memory.working(one) == 3 * 4 * (residual + starts_and_sums + lists + scores)
    gradients = memory.working(replace(one, writes_gradients=True)) - memory.working(one)
    assert gradients == 3 * 4 * 2 * PARAMETERS, "the gradients, and the updates"


@pytest.mark.parametrize("members", [3, 40])
@pytest.mark.parametrize("way", ["dense", "sparse"])
def test_the_kept_arrays_are_those_of_the_model(way: Any, members: int) -> None:
    rows, n, d = 512, 256, 8  # several slices and several chunks of scores
    init = [Untied.init(d, n, generator=torch.Generator().manual_seed(k)) for k in range(members)]
    ensemble = FunctionalEnsemble.from_members(Untied, init, batch_size=rows, kernel=way)
    ensemble.step(torch.randn(rows, d, generator=torch.Generator().manual_seed(0)))
    kernel = ensemble.kernels.of(way == "sparse")
    kept = sum(tensor.nbytes for tensor in kernel.kept._arrays.values())
    density = float(ensemble.tally.means()["l0"].mean()) / n
    parameters = 2 * n * d + n
    modelled = Stack(members, rows, n, d, 0.0, parameters, way, density)
    assert [b - a for a, b, _ in ensemble.states.slices] == modelled.slices
    updates = 4 * parameters * sum(set(modelled.slices)) if way == "dense" else 0
    assert kept + updates == pytest.approx(memory.working(modelled), rel=0.1)


def task(kernel: Any, *, largest: bool = False, **values: Any) -> list[list[Stack]]:
    (group,) = groups_of([member(id, N, **values) for id in range(4)])
    return stacks_of(
        group, group.members, rows=B, parameters=PARAMETERS, kernel=kernel, kind="cpu",
        largest=largest,
    )  # fmt: skip


def test_who_takes_which_kernel() -> None:
    ((early, late),) = task("auto")
    assert (early.way, late.way, late.density) == ("dense", "sparse", FEW)
    assert task("auto", largest=True)[0][1].density == ABOVE
    assert [[s.way for s in ways] for ways in task("dense")] == [["dense"]]
    assert [[s.way for s in ways] for ways in task("generic")] == [["generic"]]
    assert [[s.way for s in ways] for ways in task("auto", signature="gated")] == [["generic"]]
    unknown = {"l1": 1e-3, "whitening": True}
    assert task("auto", hyperparameters=unknown)[0][0].way == "generic"
    known = {"signature": "topk", "hyperparameters": {"k": 2.0}}
    ((sparse,),) = task("auto", **known)
    assert (sparse.way, sparse.density) == ("sparse", 2 / N)
    ((dense,),) = task("auto", **known | {"hyperparameters": {"k": 16.0}})
    assert dense.way == "dense"


def test_speeds_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_sae.dispatch.speeds.SECONDS", 0.0)
    threads = torch.get_num_threads()
    for together in (1, 2):
        assert all(speed > 0 for speed in measure(Device("cpu", 0, 1, 1), together))
    assert all(speed > 0 for speed in Probes(torch.device("cpu")).speeds(0.0))
    assert torch.get_num_threads() == threads
