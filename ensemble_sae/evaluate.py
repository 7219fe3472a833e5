"""`python -m ensemble_sae.evaluate`: members of a run in the place of what they reconstruct.

python -m ensemble_sae.evaluate runs/default
python -m ensemble_sae.evaluate runs/default --members pareto --rows 100_000 --keep frequent:64
python -m ensemble_sae.evaluate runs/mine --members 3,8-12 --model FOLDER --dataset texts.jsonl

The same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ensemble_sae.command_line import Json, RunFolder
from ensemble_sae.command_line import run as run_command
from ensemble_sae.terminal import end


def main(
    run: RunFolder,
    members: Annotated[
        str | None,
        typer.Option(help="all, pareto, or ids as 3,8-12; default: all, or pareto if slow."),
    ] = None,
    rows: Annotated[int, typer.Option(min=3, help="Tokens of held-out text.")] = 8_192,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Also with some features only: mcs:0.9 or frequent:64; repeatable."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name or folder, in place of the rows' own model.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Text that members were not trained on.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per context.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Cross-entropy, CE recovered, KL, FVU and L0 of members in the language model itself."""
    from ensemble_sae.evaluation.command import execute
    from ensemble_sae.evaluation.request import Request

    request = Request(
        rows=rows,
        keep=tuple(keep or ()),
        model=model,
        dataset=dataset,
        context=context,
        device=device,
        overwrite=overwrite,
    )
    end(lambda: execute(run, members, request), as_json)


if __name__ == "__main__":
    run_command(main)
