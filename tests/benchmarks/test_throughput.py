"""The benchmark runs, its contestants do the same mathematics, and its files can be read."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import contestants
import job
import measure
import readme
import throughput

CPU = torch.device("cpu")
SHAPES = {
    "one size": contestants.Shape("one size", 8, (16,), 32, "untied"),
    "three sizes": contestants.Shape("three sizes", 6, (12, 3, 7), 16, "tied"),
    "centred": contestants.Shape("centred", 5, (4, 9), 8, "affine"),
}
SPARSE = {
    name: contestants.Shape(name, 16, (64,), 256, name, 0.1)
    for name in ("untied", "tied", "affine", "topk", "batchtopk")
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def changes(shape: contestants.Shape, trainer: contestants.Trainer) -> list[dict[str, Tensor]]:
    """How far each member's params have moved."""
    initial = [params for params, _ in shape.initial(len(trainer.members()))]
    return [
        {name: now[name] - tensor for name, tensor in before.items()}
        for before, now in zip(initial, trainer.members(), strict=True)
    ]


@every_shape
@pytest.mark.parametrize("name", contestants.KERNELS)
def test_ensemble_and_loop_lose_and_move_the_same(shape: contestants.Shape, name: str) -> None:
    ours, loop = (contestants.TRAINERS[n](shape, 5, CPU) for n in (name, "loop"))
    for step, batch in enumerate(shape.batches(8, CPU)):
        ours.step(batch)
        loop.step(batch)
        torch.testing.assert_close(ours.losses(), loop.losses(), rtol=1e-4, atol=0)
        if step == 0:
            found, expected = changes(shape, ours), changes(shape, loop)
            # Adam's first update is the sign of the gradient: noise in a zero gradient is not.
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("density", [0.02, 0.1])
def test_members_have_the_density_asked_for_and_keep_it(
    shape: contestants.Shape, density: float
) -> None:
    several = replace(shape, dicts=(64, 128), density=density)
    ours = contestants.Ensemble(several, 4, CPU, "dense", lr=0.0)
    for _ in range(3):
        for batch in several.batches(4, CPU):
            ours.step(batch)
    # k is a whole number: 1 of 64 and 3 of 128, where 2% are asked for
    assert ours.active() == pytest.approx(density, rel=0.1)


def test_auto_has_chosen_before_it_is_timed() -> None:
    shape = replace(SPARSE["untied"], density=0.02)
    batches = shape.batches(4, CPU)
    auto = measure._ready("auto", shape, 3, batches)
    assert isinstance(auto, contestants.Ensemble)
    assert auto.sparse_members() == 3
    assert measure._seen({"auto": auto})["active"] == pytest.approx(0.02, rel=0.2)
    as_initialised = measure._ready("auto", replace(shape, density=None), 3, batches)
    assert measure._seen({"auto": as_initialised})["auto_sparse"] == 0


def test_a_contestant_that_trains_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    same = torch.tensor([1.0, 2.0])
    assert measure._spread({"a": same, "b": same.clone()}) == 0
    assert measure._spread({"a": same, "b": torch.tensor([1.0, 2.2])}) == pytest.approx(0.2 / 2.2)

    def other(*given: Any, **options: Any) -> contestants.Trainer:
        return contestants.Loop(*given, **{**options, "lr": 0.1})

    shape, names = SHAPES["one size"], ["dense", "loop"]
    assert set(measure._compare(shape, 2, names, shape.batches(2, CPU))[0]) == set(names)
    monkeypatch.setitem(measure.TRAINERS, "loop", other)
    with pytest.raises(measure.Disagreement, match="2 members"):
        measure._compare(shape, 2, names, shape.batches(2, CPU))


def test_members_take_the_sizes_in_turn_and_count_their_operations() -> None:
    shape = SHAPES["three sizes"]
    assert shape.sizes(4) == [12, 3, 7, 12]
    assert shape.flop(4) == 10 * 16 * 6 * (12 + 3 + 7 + 12)
    assert [len(m["decoder"]) for m in contestants.Ensemble(shape, 4, CPU, "auto").members()] == [
        12, 3, 7, 12,
    ]  # fmt: skip


def in_this_process(task: dict[str, Any]) -> dict[str, Any]:
    """A job without the seconds that a new process takes to import torch."""
    task = json.loads(json.dumps(task))
    return json.loads(json.dumps(job.KINDS[task["kind"]](task, CPU)))


def test_tables_numbers_and_figure_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "run_job", in_this_process)
    throughput.main(["--tiny", "--threads", "1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "throughput.json").read_text())
    kept, *again = report["steps"].values()
    assert [cell["members"] for cell in kept] == [2, 4, 2, 4]
    assert all(len(cells) == 1 for cells in again)
    for cell in kept:
        assert cell["loss_difference"] < 1e-5
        kernels = {"auto", "dense"} | ({"sparse", "generic"} if cell["density"] else set())
        assert set(cell["over"]["loop"]) == kernels
        for name in kernels:
            first, median, third = cell["over"]["loop"][name]
            assert 0 < first <= median <= third
            assert cell["contestants"][name]["turns"] >= 2
    assert 0 <= report["loading"][0]["stall_share"] < 1
    assert report["memory"][0]["contestant"] == "sparse"

    page = (tmp_path / "throughput.md").read_text()
    assert "python benchmarks/throughput.py --tiny" in page
    assert f"torch {torch.__version__}" in page
    assert page.count("| tiny | untied |") == 2 * sum(map(len, report["steps"].values()))
    assert "SAE-rows/s" in capsys.readouterr().out
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "throughput.svg").getroot().tag.endswith("svg")


def test_a_job_runs_in_a_process_of_its_own_with_the_settings_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = {}

    def run(command: list[str], env: dict[str, str], check: bool) -> None:
        seen.update(env)
        job.main(*command[2:])

    monkeypatch.setattr(throughput.subprocess, "run", run)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=1")
    options = throughput.parse(["--tiny", "--threads", "1"])
    tasks = list(throughput.jobs("tiny", ["auto", "loop"], options))
    assert {task["kind"] for task in tasks} == {"steps", "loading", "memory"}
    loading = next(task for task in tasks if task["kind"] == "loading")
    for setting, expected in (("kept", throughput.ALLOCATOR), ("returned", None)):
        seen.clear()
        result = throughput.run_job({**loading, "setting": setting})
        assert result["chunks"] == job.CHUNKS
        assert seen.get("GLIBC_TUNABLES") == expected
        assert seen["OMP_NUM_THREADS"] == "1"


def test_the_pages_have_the_cells_with_the_most_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cell(members: int, density: float | None) -> dict[str, Any]:
        speeds = {"auto": [2, 3, 4], "dense": [0.8, 0.9, 1]}
        speeds |= {"sparse": [2, 3.1, 4]} if density else {}
        return {
            "shape": "large", "signature": "tied", "d": 8, "dicts": [64, 16], "batch": 32,
            "members": members, "density": density, "active": density or 0.497,
            "auto_sparse": members if density else 0, "of_limit": speeds, "over": {"loop": speeds},
        }  # fmt: skip

    about = {"hardware": "an abacus", "packages": {"torch": "2.13.0+cpu", "numba": "0.68.0"}}
    cells = [cell(members, density) for density in (0.02, None) for members in (1, 8)]
    for name, mark in (("README", "throughput"), ("KERNELS", "kernels")):
        page = tmp_path / f"{name}.md"
        page.write_text(f"before\n<!-- {mark} -->\nold\n<!-- /{mark} -->\nafter\n")
        monkeypatch.setattr(readme, name, page)
    readme.write_throughput({"about": about, "steps": {"kept": cells}})

    first = (tmp_path / "README.md").read_text()
    assert "old" not in first
    assert first.count("| 8 of d 8, n 16..64, B 32 |") == 2
    assert "| 2% | 3.00x |  | 3.00x |" in first
    assert "an abacus, float32, torch 2.13.0, numba 0.68.0." in first
    second = (tmp_path / "KERNELS.md").read_text()
    assert "| `tied` | 2% | 3.10x | 0.90x | 3.10x | 0.90x | sparse |" in second
    assert "| `tied` | 50% |  | 0.90x |  | 0.90x | dense |" in second
