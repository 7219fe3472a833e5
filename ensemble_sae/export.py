"""`python -m ensemble_sae.export`: members of a run in the formats of other packages.

python -m ensemble_sae.export runs/default --member 17 --to saelens --out exported/17
python -m ensemble_sae.export runs/default --pareto --to dictionary_learning --out exported
python -m ensemble_sae.export runs/default --member 17 --to saelens --out x --push user/repo
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemble_sae import completion
from ensemble_sae.command_line import Json, RunFolder
from ensemble_sae.command_line import run as run_command
from ensemble_sae.terminal import end


def main(
    run: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            help="saelens, dictionary_learning, sparsify or safetensors.",
            autocompletion=completion.formats,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder that is written.")],
    member: Annotated[int | None, typer.Option(help="A member's id.")] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="All Pareto-best members, a folder each.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="Also to USER/REPO on the Hugging Face hub.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write members so that other packages load them: everything is folded into the weights."""
    from ensemble_sae.interop.command import execute

    end(lambda: execute(run, member, pareto, to, out, push, overwrite), as_json)


if __name__ == "__main__":
    run_command(main)
