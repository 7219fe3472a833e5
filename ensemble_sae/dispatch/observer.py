"""What a sweep tells those who watch it. Watching never changes or stops the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemble_sae.dispatch.planner import Plan
from ensemble_sae.run import Checkpoint
from ensemble_sae.sweep import Member


class Observer:
    """Does nothing at every event; subclasses do what they want."""

    def opened(self, folder: Path) -> None:
        """The run's folder is there and ours."""

    def harvesting(self, progress: Any) -> None:
        """A harvest before the training goes on: rows, rows_total, rows_per_second."""

    def started(self, plan: Plan, rows: int, work: int, done: int) -> None:
        """Training begins.

        Args:
            rows: rows of the schedule, over all hooks and epochs.
            work: the same, summed over the workers that each read them.
            done: how much of `work` was done before a resume.
        """

    def progress(self, rows: int, sae_rows: int, means: Mapping[str, Any]) -> None:
        """A worker trained on rows (counted as `work`); running means per task, now and then."""

    def round_done(self, number: int, rows: list[dict[str, Any]]) -> None:
        """All workers finished a round; one metrics row per member."""

    def frozen(self, member: Member, step: int) -> None:
        """A member's loss or gradient was not finite at this step; it no longer moves."""

    def saved(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is complete."""

    def worker_died(self, device: str, reason: str, restarting: bool) -> None:
        """A worker's process ended."""

    def evaluating(self) -> None:
        """Training is over; held-out rows are evaluated."""

    def warning(self, text: str) -> None:
        """Something worth a line."""

    def finished(self, table: Any) -> None:
        """The members' table (a DataFrame) of a run that came to its end."""

    def reporting(self, what: str) -> None:
        """The report is being written: what is done just now."""

    def reported(self, page: Path) -> None:
        """The run's report is written: its index.html."""

    def ended(self) -> None:
        """Nothing more will come."""


class Observers(Observer):
    """Several observers; one that fails is dropped with a line, and the training goes on."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        return lambda *args, **kwargs: self._tell(name, *args, **kwargs)

    def _tell(self, event: str, *args: Any, **kwargs: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, event)(*args, **kwargs)
            except Exception as error:  # a broken display must not end a week of training
                self._observers.remove(observer)
                self._tell(
                    "warning", f"{type(observer).__name__} failed and is left out: {error!r}"
                )
