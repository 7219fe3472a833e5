"""Progress of what comes after the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Tell = Callable[[int, int], None]


@contextmanager
def steps(console: Console) -> Iterator[Callable[[str], Tell]]:
    """Gives a function that begins a line of progress and returns what it is told: done, of all."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:

        def begin(description: str) -> Tell:
            line = progress.add_task(description, total=None)
            return lambda done, total: progress.update(line, completed=done, total=total)

        yield begin
