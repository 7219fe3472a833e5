"""The report that a sweep ends with: whatever goes wrong with it, the run is whole."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ensemble_sae
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.engine import report_at_end as module


class Watching(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def warning(self, text: str) -> None:
        self.told.append(("warning", text))

    def finished(self, table: Any) -> None:
        self.told.append(("finished", len(table)))

    def reported(self, page: Path) -> None:
        self.told.append(("reported", page))

    def ended(self) -> None:
        self.told.append(("ended", None))


def sweep(folder: Path, observer: Observer | None = None, **options: Any) -> ensemble_sae.run.Run:
    rows = np.random.default_rng(0).standard_normal((2_000, 8)).astype(np.float32)
    if not (folder / "data").exists():
        ensemble_sae.ChunkStore.write(folder / "data", rows)
    return ensemble_sae.run_sweep(
        [{"signature": "tied", "dict_ratio": 2, "l1": l1} for l1 in (1e-3, 1e-2)],
        activations={"store": str(folder / "data")},
        train={"batch_size": 256},
        run=folder / "run",
        devices="cpu:1",
        threads=1,
        observer=observer,
        **options,
    )


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "run.json").read_text())
    return found


def test_it_is_written_after_the_tables_and_before_the_end(tmp_path: Path) -> None:
    watching = Watching()
    run = sweep(tmp_path, watching)
    page = run.path / "report" / "index.html"
    assert [name for name, _ in watching.told] == ["finished", "reported", "ended"]
    assert watching.told[1][1] == page
    assert page.stat().st_size > 1_000_000  # with plotly in it


def test_it_can_be_left_out(tmp_path: Path) -> None:
    watching = Watching()
    run = sweep(tmp_path, watching, report=False)
    assert [name for name, _ in watching.told] == ["finished", "ended"]
    assert not (run.path / "report").exists()


def test_a_signal_ends_the_report_and_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(run: Any, tell: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal did not interrupt")

    monkeypatch.setattr(module, "write_report", stopped)
    watching = Watching()
    run = sweep(tmp_path, watching)
    (kind, text), *_ = [one for one in watching.told if one[0] == "warning"]
    assert kind == "warning"
    assert f"ensemble_sae.report {run.path}" in text
    assert watching.told[-1] == ("ended", None)
    found = status(tmp_path)
    assert found["status"] == "finished"
    assert found["seconds"] > 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_goes_wrong_is_told_and_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(run: Any, tell: Any) -> Path:
        raise error

    monkeypatch.setattr(module, "write_report", broken)
    watching = Watching()
    sweep(tmp_path, watching)
    assert any(type(error).__name__ in text for name, text in watching.told if name == "warning")
    assert status(tmp_path)["status"] == "finished"


def test_without_features_the_page_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> None:
        raise OSError("the hub does not answer")

    monkeypatch.setattr(module, "look_first", broken)
    watching = Watching()
    run = sweep(tmp_path, watching)
    assert (run.path / "report" / "index.html").is_file()
    assert any(
        "the hub does not answer" in text for name, text in watching.told if name == "warning"
    )
