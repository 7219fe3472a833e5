"""What commands share: how they end, and progress, a bar on a terminal and lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ensemble_sae.errors import UserError

PLAIN_S = 10.0  # between two lines where there is no terminal

Show = Callable[[int, int | None, str], None]


def end(work: Callable[[], int]) -> NoReturn:
    """Do a command's work and exit with its code; a `UserError` is printed without a traceback."""
    import typer

    try:
        code = work()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        code = error.exit_code
    raise typer.Exit(code)


@contextmanager
def progress(first: str) -> Iterator[Show]:
    """A function `show(done, total, text)`, to be called often; total None is not known.

    Args:
        first: what is shown before the first call.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(), TextColumn("{task.fields[text]}"), console=console) as bar:
        task = bar.add_task("", total=None, text=first)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


def left(seconds: float | None) -> str:
    """`, 1:05 left`; nothing where nobody knows."""
    return "" if seconds is None else f", {int(seconds) // 60}:{int(seconds) % 60:02} left"


def remaining(done: int, total: int, seconds: float) -> float | None:
    """Seconds that are left, if what is to come takes as long as what was done."""
    return seconds / done * (total - done) if done else None


def _lines(console: Any) -> Show:
    last = time.monotonic() - PLAIN_S

    def show(done: int, total: int | None, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_S or done == total:
            last = time.monotonic()
            console.print(text, highlight=False)

    return show
