"""`python -m ensemble_sae.study`: a published study, from its sweep to a page with figures.

python -m ensemble_sae.study toy_96 --quick
python -m ensemble_sae.study toy_96 --gpus 8
python -m ensemble_sae.study init_study --out studies/mine --set train.lr=3e-4
python -m ensemble_sae.study positions

The same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemble_sae import completion
from ensemble_sae.command_line import Json, run
from ensemble_sae.terminal import end


def main(
    name: Annotated[
        str,
        typer.Argument(
            help="toy_96, init_study, overcomplete_tricks or positions.",
            show_default=False,
            autocompletion=completion.studies,
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller version: minutes on a laptop.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs, figures and page; default studies/NAME.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="SECTION.KEY=VALUE, over the sweep's file.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="Train on this many GPUs.")] = None,
    devices: Annotated[
        str | None, typer.Option(help="cuda:0,cuda:1 or cpu:2 (two CPU workers).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each CPU worker.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where stores are; default OUT/data.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a published study: train its sweep, read it, and write a page with figures."""
    from ensemble_sae.studies.command import execute

    given = (name, quick, out, tuple(settings or ()), gpus, devices, threads, data_dir)
    end(lambda: execute(*given), as_json)


if __name__ == "__main__":
    run(main)
