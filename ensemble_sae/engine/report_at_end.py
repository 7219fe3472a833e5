"""The report that a sweep ends with. Whatever goes wrong with it, the run is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.errors import UserError
from ensemble_sae.reporting import write_report
from ensemble_sae.reporting.command import Look, look_first
from ensemble_sae.run import Run
from ensemble_sae.sweep.schema import Report
from ensemble_sae.terminal import spelled


def report_at_end(
    opened: Callable[[], Run], folder: Path, asked: Report, observer: Observer
) -> None:
    """Look at features if the sweep asks for it, and write the page; the observer is told where."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    again = f"this makes it: {spelled('report', str(folder))}"
    try:
        run = opened()
        _look(run, asked, observer)
        observer.reported(write_report(run, observer.reporting))
    except KeyboardInterrupt:
        observer.warning(f"the report is left out; {again}")
    except Exception as error:
        observer.warning(f"the report could not be written: {_reason(error)} {again}")


def _look(run: Run, asked: Report, observer: Observer) -> None:
    """The page is written without features where nobody can look at them."""

    def telling(what: str, done: int, total: int) -> None:
        observer.reporting(f"{what} {100 * done / max(1, total):.0f}%")

    try:
        look_first(run, Look(count=asked.look, effects=asked.effects), telling)
    except Exception as error:
        observer.warning(f"the report shows no features: {_reason(error)}")


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, UserError) else repr(error)
