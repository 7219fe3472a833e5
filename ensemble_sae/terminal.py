"""What commands share: how they end, what they give to scripts, and progress: a bar on a terminal
and lines elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from ensemble_sae.errors import UserError

PLAIN_S = 10.0  # between two lines where there is no terminal
SCRIPT = "ensemble-sae"  # the console command
INTERRUPTED = 130  # by SIGINT, as shells have it

Show = Callable[[int, int | None, str], None]


class Ended(int):
    """The exit code of a command, with what it found: that is what `--json` gives.

    `Ended(0, run="runs/default", members=rows)`
    """

    found: dict[str, Any]

    def __new__(cls, code: int, **found: Any) -> Ended:
        """An exit code, and JSON values by name; see `as_json` for what else they may be."""
        ended = super().__new__(cls, code)
        ended.found = found
        return ended


def end(work: Callable[[], int], for_scripts: bool = False) -> NoReturn:
    """Do a command's work and exit with its code; a `UserError` is printed without a traceback.

    Args:
        work: returns the exit code: an `Ended` if there is something to tell.
        for_scripts: `--json`: stdout gets one JSON object, what was found or `{"error": {...}}`,
            and everything for people goes to stderr.
    """
    import typer

    with _all_to_stderr() if for_scripts else nullcontext():
        try:
            ended = work()
        except UserError as error:
            typer.echo(f"error: {error}", err=True)
            ended = Ended(error.exit_code, error=_parts(error))
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            ended = Ended(INTERRUPTED, interrupted=True)
    if for_scripts:
        print_json(ended.found if isinstance(ended, Ended) else {})
    raise typer.Exit(int(ended))


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    import typer

    typer.echo(json.dumps(as_json(value), indent=1, allow_nan=False))


def as_json(value: Any) -> Any:
    """A value as JSON has it: paths as text, NumPy's as Python's; NaN and infinities are null."""
    if hasattr(value, "tolist"):  # an array or a number of NumPy
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _parts(error: UserError) -> dict[str, str | None]:
    names = ("what", "where", "found", "allowed", "next_step")
    return {name: getattr(error, name) for name in names}


@contextmanager
def _all_to_stderr() -> Iterator[None]:
    """What is printed to stdout goes to stderr, also what worker processes print."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def spelled(module: str, *words: str) -> str:
    """A command of this package, as people type it: `ensemble-sae evaluate runs/default` within
    the console command, `python -m ensemble_sae.evaluate runs/default` elsewhere.
    """
    if Path(sys.argv[0]).stem == SCRIPT:
        return shlex.join([SCRIPT, "sweep" if module == "big_sweep" else module, *words])
    return shlex.join(["python", "-m", f"ensemble_sae.{module}", *words])


def as_called(module: str) -> str:
    """This very command, with all its options."""
    words = sys.argv[1:]
    return spelled(module, *(words[1:] if Path(sys.argv[0]).stem == SCRIPT else words))


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
