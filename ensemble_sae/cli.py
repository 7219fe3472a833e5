"""`ensemble-sae`: the commands of the package under one name.

ensemble-sae sweep
ensemble-sae info runs/default
ensemble-sae evaluate runs/default --help
ensemble-sae --install-completion
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ensemble_sae import (
    __version__,
    adopt,
    big_sweep,
    evaluate,
    export,
    harvest,
    info,
    interpret,
    report,
    study,
)
from ensemble_sae.command_line import Command, Group
from ensemble_sae.terminal import SCRIPT

COMMANDS: dict[str, Callable[..., None]] = {
    "sweep": big_sweep.main,
    "harvest": harvest.main,
    "evaluate": evaluate.main,
    "interpret": interpret.main,
    "report": report.main,
    "export": export.main,
    "adopt": adopt.main,
    "study": study.main,
    "info": info.main,
}
app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_show_locals=False)
for _name, _main in COMMANDS.items():
    app.command(_name, cls=Command)(_main)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{SCRIPT} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show it and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Train whole sweeps of sparse autoencoders, look at them, take them elsewhere."""


def main() -> None:
    """The console command."""
    app(prog_name=SCRIPT)


if __name__ == "__main__":
    main()
