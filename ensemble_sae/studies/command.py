"""What `study` does with its options: find the study, run it, say where its page is."""

from __future__ import annotations

import importlib
import signal
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.dispatch.dispatcher import Interrupted
from ensemble_sae.engine.resume import versions
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.pages.figures import matplotlib
from ensemble_sae.studies import STUDIES, Request
from ensemble_sae.terminal import Ended, as_called


def execute(
    name: str,
    quick: bool,
    out: Path | None,
    settings: tuple[str, ...],
    gpus: int | None,
    devices: str | None,
    threads: int | None,
    data_dir: Path | None,
) -> int:
    """Run the study; returns the exit code: 0, or 130 / 143 after SIGINT / SIGTERM.

    Raises:
        UserError: no such study; something in its settings, its data or the machine does not fit.
    """
    if name not in STUDIES:
        raise UserError("There is no such study.", found=repr(name), allowed=nearest(name, STUDIES))
    matplotlib()  # whoever lacks it should know before the training, not after
    out = out or Path("studies") / (f"{name}-quick" if quick else name)
    request = Request(name, out, quick, settings, gpus, devices, threads, data_dir)
    console = Console()
    try:
        page = importlib.import_module(STUDIES[name]).make(request, console)
    except Interrupted as interruption:
        _say_how_to_go_on(console)
        return Ended(128 + interruption.signal, interrupted=True, next_step=as_called("study"))
    except KeyboardInterrupt:
        _say_how_to_go_on(console)
        return Ended(128 + signal.SIGINT, interrupted=True, next_step=as_called("study"))
    page.text(_made())
    path = page.write(out)
    console.print(f"The page is {path}", highlight=False, soft_wrap=True)
    return Ended(0, study=name, folder=out, page=path)


def _made() -> str:
    """By which command, with what, on what."""
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"Made by `{as_called('study')}` on {hardware()}; {known}; {datetime.now(UTC):%Y-%m-%d}."


def _say_how_to_go_on(console: Console) -> None:
    console.print("Interrupted; everything is saved. The same command goes on:", highlight=False)
    console.print(f"  {as_called('study')}", highlight=False, soft_wrap=True)
