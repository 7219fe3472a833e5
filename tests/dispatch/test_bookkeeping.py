"""Checkpoint folders and the ledger, without workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ensemble_sae.dispatch.ledger import Ledger
from ensemble_sae.dispatch.messages import RoundDone
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.run import Checkpoint, Checkpoints, Part, Position
from ensemble_sae.run.checkpoint import write_part
from ensemble_sae.run.metrics import MetricsLog, read_rows


def saved(checkpoints: Checkpoints, step: int, position: Position | None = None) -> Checkpoint:
    folder = checkpoints.begin()
    state = {"params/x": torch.zeros(1, 2), "step": torch.tensor(step)}
    part = write_part(folder, "g", [0], state, position or Position(step))
    (folder / f".tmp-1-{part.file}").touch()  # of a worker that was killed
    return checkpoints.commit(folder, [part], {})


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_same_step_twice_keeps_the_newer_one_and_never_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for _ in range(3):
        saved(checkpoints, 7)
        checkpoints.prune(2)
    assert names(checkpoints) == ["step-0000000007.001", "step-0000000007.002"]
    found = checkpoints.latest()
    assert found is not None
    assert found.folder.name == "step-0000000007.002"
    assert sorted(p.name for p in found.folder.iterdir()) == ["g-m0.safetensors", "manifest.json"]


def test_a_damaged_newer_checkpoint_does_not_crowd_out_the_good_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    good, damaged = saved(checkpoints, 1), saved(checkpoints, 9)
    (damaged.folder / "g-m0.safetensors").write_bytes(b"x")
    checkpoints.begin()
    found = checkpoints.latest()
    assert found is not None
    assert found.folder == good.folder
    checkpoints.clean(found)
    saved(checkpoints, 5)
    checkpoints.prune(1)
    assert names(checkpoints) == ["damaged-step-0000000009", "step-0000000005"]


def part(member: int, position: Position) -> Part:
    return Part(f"{member}", "g", (member,), 100, position, 1, "0" * 64, {})


def rows(number: int, *members: int) -> list[dict[str, Any]]:
    return [{"round": number, "member": m, "loss": float(10 * number + m)} for m in members]


def report(number: int, *members: int) -> RoundDone:
    return RoundDone(number, rows(number, *members), {}, 0.0, 0.0)


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_rows_of_members_ahead_of_a_restarted_worker_are_not_lost(
    tmp_path: Path, behind: int
) -> None:
    """Worker 0 is two rounds ahead of worker 1, which was put back to round `behind`."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    ledger = Ledger(log, 2, {}, Observer())
    for number in range(5):
        ledger.round_done(0, report(number, 0))
        if number < 3:
            ledger.round_done(1, report(number, 1))
    parts = [part(0, Position(5, 4)), part(1, Position(behind, 7))]
    checkpoint = Checkpoint(tmp_path, parts, ledger.notes(parts))
    resumed = Ledger(log, 1, {}, Observer())
    resumed.restore(checkpoint)
    for number in range(behind, 7):
        resumed.round_done(0, report(number, *([1] if number < 5 else [0, 1])))
    assert read_rows(log.path) == [row for number in range(7) for row in rows(number, 0, 1)]


def test_notes_hold_nothing_that_will_be_reported_again(tmp_path: Path) -> None:
    ledger = Ledger(MetricsLog(tmp_path / "metrics.jsonl"), 2, {}, Observer())
    for number in range(3):
        ledger.round_done(0, report(number, 0))
    ledger.round_done(1, report(0, 1))
    both = [part(0, Position(1)), part(1, Position(1))]
    assert ledger.notes(both) == {"rows": [], "frozen": {}}
