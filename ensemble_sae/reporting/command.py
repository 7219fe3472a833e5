"""What `report` does with its options: look at features if asked, write the page, say where."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ensemble_sae.errors import UserError
from ensemble_sae.evaluation.command import chosen as chosen_members
from ensemble_sae.inspection.looking import OnProgress
from ensemble_sae.inspection.request import FRAGMENTS, Desk
from ensemble_sae.reporting.choosing import along_the_frontier
from ensemble_sae.reporting.looking import look_at
from ensemble_sae.reporting.writing import write_report
from ensemble_sae.run import Run, load
from ensemble_sae.terminal import INTERRUPTED, Ended, progress


@dataclass(frozen=True)
class Look:
    """Whose features the report is to show, beside those that were looked at before.

    Attributes:
        count: so many members along the frontier. members: others, as `--members` names them.
        effects: also ablate, steer and drop tokens. fragments: of text, at most. model, dataset,
        device: as of `features`.
    """

    count: int = 0
    members: str | None = None
    effects: bool = False
    fragments: int = FRAGMENTS
    model: str | None = None
    dataset: str | None = None
    device: str | None = None


def execute(folder: Path, look: Look, open_it: bool = False) -> int:
    """Write the report and say where it is; returns the exit code: 0, or 130 after SIGINT.

    Raises:
        UserError: no run, no such member, no language model to look at features with.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    run, console = load(folder), Console()
    try:
        page = make(run, look)
    except KeyboardInterrupt:
        console.print("Interrupted. What was found of features is kept.")
        return Ended(INTERRUPTED, run=run.path, interrupted=True)
    console.print(f"The report: {page}", highlight=False, markup=False, soft_wrap=True)
    if open_it:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return Ended(0, run=run.path, report=page)


def make(run: Run, look: Look) -> Path:
    """Look at features, then write the page, with progress on the terminal."""
    with progress("reading the run") as show:
        told: OnProgress = lambda what, done, total: show(  # noqa: E731
            done, total, f"{what} {100 * done / max(1, total):.0f}%"
        )
        look_first(run, look, told)
        step: Callable[[str], object] = lambda what: show(0, None, what)  # noqa: E731
        return write_report(run, step)


def look_first(run: Run, look: Look, on_progress: OnProgress) -> None:
    """Look at the features of the members that are asked for; nothing where none is.

    Raises:
        UserError: no such member; no language model; see `inspection.features`.
    """
    members = along_the_frontier(run, look.count) if look.count else []
    members += [m for m in chosen_members(run, look.members) or [] if m not in members]
    for member in members:
        if member not in run.configurations:  # before hours are spent on those before it
            raise UserError(
                "There is no such member.",
                where=str(run.path),
                found=str(member),
                allowed=f"0 to {max(run.configurations)}",
            )
    if members:
        desk = Desk(run, look.fragments, model=look.model, dataset=look.dataset, device=look.device)
        look_at(desk, members, look.effects, on_progress)
