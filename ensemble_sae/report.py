"""`python -m ensemble_sae.report`: a run as one page that opens from the disk.

python -m ensemble_sae.report runs/default
python -m ensemble_sae.report runs/default --look 6 --open
python -m ensemble_sae.report runs/default --members 17,30 --effects

Every sweep writes its report at its end; this writes it again, with what was found since.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ensemble_sae.command_line import Json, RunFolder
from ensemble_sae.command_line import run as run_command
from ensemble_sae.terminal import end


def main(
    run: RunFolder,
    look: Annotated[
        int, typer.Option(min=0, help="Look at features of so many members along the frontier.")
    ] = 0,
    members: Annotated[
        str | None,
        typer.Option(help="Look at features of these: all, pareto, or ids as 3,8-12."),
    ] = None,
    effects: Annotated[
        bool, typer.Option("--effects", help="Also ablate and steer each feature: takes longer.")
    ] = False,
    fragments: Annotated[
        int, typer.Option(min=40, help="Fragments of 64 tokens to look at them on, at most.")
    ] = 50_000,
    model: Annotated[
        str | None, typer.Option(help="Name or folder, in place of the rows' own model.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Text to read, in place of theirs.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write RUN/report/index.html: the frontier, every member, and what features respond to."""
    from ensemble_sae.reporting.command import Look, execute

    asked = Look(look, members, effects, fragments, model, dataset, device)
    end(lambda: execute(run, asked, open_it), as_json)


if __name__ == "__main__":
    run_command(main)
