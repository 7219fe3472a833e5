"""`python -m ensemble_sae.adopt`: a run's folder of dictionaries that others trained.

python -m ensemble_sae.adopt theirs/layer_2 --recipe embedded --run runs/theirs
python -m ensemble_sae.adopt a b --hook blocks.2.hook_resid_pre --recipe embedded --run runs/ab
python -m ensemble_sae.adopt theirs/* --model gpt2 --dataset texts.jsonl --run runs/gpt2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemble_sae import completion
from ensemble_sae.command_line import Json
from ensemble_sae.command_line import run as run_command
from ensemble_sae.terminal import end


def main(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="One of each dictionary: SAELens, dictionary_learning, sparsify, safetensors.",
            show_default=False,
        ),
    ],
    run: Annotated[Path, typer.Option(help="The run's folder, which is made.")],
    hook: Annotated[
        str | None, typer.Option(help="Hook point of all of them. Default: what they say.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Of the rows: a built-in name or a .toml. Default: what they say.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face name or folder.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Files, folder, glob, or a Hugging Face name.")
    ] = None,
    no_rows: Annotated[bool, typer.Option("--no-rows", help="Measure nothing.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Default: $ENSEMBLE_SAE_DATA, or ./data.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a run of dictionaries that others trained: to be evaluated, looked at, compared."""
    from ensemble_sae.engine.adopting_command import execute

    end(
        lambda: execute(
            folders,
            run,
            hook=hook,
            recipe=recipe,
            model=model,
            dataset=dataset,
            rows=not no_rows,
            data_dir=data_dir,
        ),
        as_json,
    )


if __name__ == "__main__":
    run_command(main)
