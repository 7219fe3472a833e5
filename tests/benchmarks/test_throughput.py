"""The benchmark runs, its contestants do the same mathematics, and its files can be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import contestants
import job
import throughput

CPU = torch.device("cpu")
SHAPES = {
    "one size": contestants.Shape("one size", 8, (16,), 32, "untied"),
    "three sizes": contestants.Shape("three sizes", 6, (12, 3, 7), 16, "tied"),
    "centred": contestants.Shape("centred", 5, (4, 9), 8, "affine"),
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
@pytest.mark.parametrize("name", ["ensemble", "generic"])
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


def test_a_contestant_that_trains_otherwise_is_noticed() -> None:
    from measure import _spread

    same = torch.tensor([1.0, 2.0])
    assert _spread({"a": same, "b": same.clone()}) == 0
    assert _spread({"a": same, "b": torch.tensor([1.0, 2.2])}) == pytest.approx(0.2 / 2.2)


def test_members_take_the_sizes_in_turn_and_count_their_operations() -> None:
    shape = SHAPES["three sizes"]
    assert shape.sizes(4) == [12, 3, 7, 12]
    assert shape.flop(4) == 10 * 16 * 6 * (12 + 3 + 7 + 12)
    assert [len(m["decoder"]) for m in contestants.Ensemble(shape, 4, CPU, "auto").members()] == [
        12, 3, 7, 12,
    ]  # fmt: skip


def in_this_process(task: dict[str, Any]) -> dict[str, Any]:
    """A job without the seconds that a new process takes to import torch."""
    shape = contestants.Shape(**{**task["shape"], "dicts": tuple(task["shape"]["dicts"])})
    return json.loads(json.dumps(job.KINDS[task["kind"]](task, shape, CPU)))


def test_tables_numbers_and_figure_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "run_job", in_this_process)
    throughput.main(["--tiny", "--threads", "1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "throughput.json").read_text())
    for cells in report["steps"].values():
        assert [cell["members"] for cell in cells] == [2, 4]
        for cell in cells:
            assert cell["loss_difference"] < 1e-5
            first, median, third = cell["speedup_over"]["loop"]
            assert 0 < first <= median <= third
            assert cell["contestants"]["ensemble"]["turns"] >= 2
    assert 0 <= report["loading"][0]["stall_share"] < 1
    assert report["memory"][0]["contestant"] == "ensemble"

    page = (tmp_path / "throughput.md").read_text()
    assert "python benchmarks/throughput.py --tiny" in page
    assert f"torch {torch.__version__}" in page
    assert page.count("| tiny | 4 |") == len(report["steps"])
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
    tasks = list(throughput.jobs("tiny", ["ensemble", "loop"], options))
    assert {task["kind"] for task in tasks} == {"steps", "loading", "memory"}
    loading = next(task for task in tasks if task["kind"] == "loading")
    for setting, expected in (("kept", throughput.ALLOCATOR), ("returned", None)):
        seen.clear()
        result = throughput.run_job({**loading, "setting": setting})
        assert result["chunks"] == job.CHUNKS
        assert seen.get("GLIBC_TUNABLES") == expected
        assert seen["OMP_NUM_THREADS"] == "1"
