"""Which folder a run gets, and that it is this process's alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ensemble_sae.errors import UserError
from ensemble_sae.run import Layout
from ensemble_sae.run.layout import Busy, numbered


@contextmanager
def claimed(default: Path, run: str | Path | None, resume: bool) -> Iterator[Layout]:
    """The run's folder, locked.

    Args:
        default: where it goes when no `run` is given; numbered if that is taken.
        resume: the folder must hold a run; otherwise it must hold none.

    Raises:
        UserError: it is the other way round, or another process is writing there.
    """
    if resume:
        layout = Layout(run or default)
        if not layout.exists():
            raise UserError(
                "There is no run to resume.",
                where=str(layout.folder),
                next_step="--run FOLDER names the run; without --resume a new one begins",
            )
        with layout.locked():
            yield layout
        return
    for folder in [Path(run)] if run is not None else numbered(default):
        layout = Layout(folder)
        try:
            with layout.locked():
                if not layout.exists():  # asked under the lock: two may begin at once
                    try:
                        yield layout
                    finally:
                        layout.remove_if_empty()
                    return
        except Busy:
            if run is not None:
                raise
    raise UserError(
        "This folder already holds a run.",
        where=str(run),
        next_step="--resume goes on with it; another --run begins a new one",
    )
