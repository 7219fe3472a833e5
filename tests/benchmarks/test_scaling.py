"""The benchmark of the cost model runs, its files can be read, and prices can be fitted to them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import scaling
import scaling_worker

from ensemble_sae.dispatch.cost import PRICES, Speeds, work_of


def in_this_process(cell: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The workers of a cell one after the other, without processes of their own."""
    return [json.loads(json.dumps(scaling_worker.work(job, lambda: None))) for job in cell]


def test_table_numbers_and_figure_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "run_cell", in_this_process)
    monkeypatch.setattr(scaling_worker, "peak_bytes", counting())
    scaling.main(["--tiny", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "scaling.json").read_text())
    found = [(cell["kernel"], cell["workers"], cell["members"]) for cell in report["cells"]]
    assert found == [("dense", 1, 2), ("dense", 2, 2), ("sparse", 1, 2), ("sparse", 2, 2)]
    for cell in report["cells"]:
        first, median, third = cell["time_ratio"]
        assert 0 < first <= median <= third
        assert cell["bytes"] == 2**20
    page = (tmp_path / "scaling.md").read_text()
    assert "python benchmarks/scaling.py --tiny" in page
    assert page.count("| d 4, n 8, B 16 |") == 4
    assert page in capsys.readouterr().out
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "scaling.svg").getroot().tag.endswith("svg")
    scaling.main(["--fit", "--out", str(tmp_path)])
    assert '"sparse": Price(' in capsys.readouterr().out


def counting() -> Any:
    """A peak that grows by a MiB whenever it is asked for."""
    calls = iter(range(10**6))
    return lambda device: next(calls) * 2**20


def test_a_worker_that_ends_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "input()"]

    def start(job: dict[str, Any]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    monkeypatch.setattr(scaling, "_start", start)
    (cell, *_) = scaling.jobs(scaling.parse(["--tiny"]))
    with pytest.raises(RuntimeError, match="ended early"):
        scaling.run_cell(cell)


def test_a_worker_is_told_when_all_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "import sys; input(); print('ready', flush=True); input(); print([1])"
    pipe = subprocess.PIPE
    monkeypatch.setattr(
        scaling,
        "_start",
        lambda job: subprocess.Popen(
            [sys.executable, "-c", answer], stdin=pipe, stdout=pipe, text=True
        ),
    )
    assert scaling.run_cell([{}, {}]) == [[1], [1]]


def test_prices_are_fitted_to_times_that_differ() -> None:
    speeds = Speeds(9e10, 7e10, 3e10, 6e-4)
    job = {**scaling.MIDDLE, "density": 0.02, "kernel": "dense", "device": "cpu"}
    cells = []
    for members in (1, 8, 64):
        stack = scaling_worker.stack_of({**job, "members": members}, 0.02)
        price = PRICES["dense"]._replace(product=2 * PRICES["dense"].product)
        seconds = work_of(stack, price).seconds(speeds)
        cells.append({"kernel": "dense", "seconds": seconds, "speeds": [*speeds]})
        cells[-1]["stack"] = vars(stack)
    price = scaling.fitted(cells)["dense"]
    for cell in cells:
        stack = scaling.Stack(**cell["stack"])
        assert work_of(stack, price).seconds(speeds) == pytest.approx(cell["seconds"], rel=0.05)
    assert price.entry == PRICES["dense"].entry == 0
