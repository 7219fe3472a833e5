"""Numbers that are taken at every checkpoint while a run is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.files import read_json, write_json
from ensemble_sae.run import Checkpoint, Run, load


class Track(Observer):
    """Keeps what is measured at each checkpoint in a file, so that a resumed run has all of it.

    A run that goes on from an earlier checkpoint takes the numbers after it once more: the same.

    Args:
        path: the file: JSON, step -> numbers by member id.
        measure: numbers by member id, of a checkpoint of a run.
    """

    def __init__(self, path: Path, measure: Callable[[Run, Checkpoint], dict[int, float]]) -> None:
        self._path, self._measure = path, measure
        self.found: dict[int, dict[int, float]] = {}
        if path.is_file():
            self.found = {
                int(step): {int(member): value for member, value in row.items()}
                for step, row in read_json(path).items()
            }

    def opened(self, folder: Path) -> None:
        self._run = load(folder)

    def saved(self, checkpoint: Checkpoint) -> None:
        self.found[checkpoint.step] = self._measure(self._run, checkpoint)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self.found)
