"""`python -m ensemble_sae.info`: what is installed, and what a run is.

python -m ensemble_sae.info
python -m ensemble_sae.info runs/default
python -m ensemble_sae.info runs/default --json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemble_sae import completion
from ensemble_sae.command_line import Json, run
from ensemble_sae.terminal import end


def main(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run's folder; without one: versions, devices, data, built-in sweeps.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Default: $ENSEMBLE_SAE_DATA, or ./data.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed and what can be trained; or what a run is, and what is next."""
    from ensemble_sae.engine.info import execute

    end(lambda: execute(folder, data_dir), as_json)


if __name__ == "__main__":
    run(main)
