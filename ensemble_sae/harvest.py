"""`python -m ensemble_sae.harvest`: run a language model over text, store its activations.

python -m ensemble_sae.harvest embedded
python -m ensemble_sae.harvest pythia70m_resid_mlp --dataset my_texts/ --rows 2_000_000
python -m ensemble_sae.harvest --model gpt2 --dataset texts.jsonl --hook blocks.3.hook_mlp_out
python -m ensemble_sae.harvest --from-npy rows-0.npy rows-1.npy --name mine
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemble_sae import completion
from ensemble_sae.command_line import Json, run
from ensemble_sae.errors import UserError
from ensemble_sae.terminal import INTERRUPTED, Ended, end, left, progress

if TYPE_CHECKING:
    from ensemble_sae.data.progress import Progress
    from ensemble_sae.data.store import ChunkStore

What = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE",
        help="A built-in recipe, a .toml file; or FILES with --from-npy.",
        autocompletion=completion.recipes,
    ),
]
Command = Callable[..., "tuple[list[ChunkStore], int | None]"]
Hooks = Annotated[list[str] | None, typer.Option("--hook", help="Hook point; repeatable.")]


def main(
    what: What = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face name or folder.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Files, folder, glob, or a Hugging Face name.")
    ] = None,
    text_field: Annotated[str | None, typer.Option(help="Field that holds the text.")] = None,
    hook: Hooks = None,
    rows: Annotated[int | None, typer.Option(help="Rows to keep, held-out ones too.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per context.")] = None,
    chunk_rows: Annotated[int | None, typer.Option(help="Rows per chunk.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16 or float32.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share that is held out.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Contexts per forward.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the shuffle and the split.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    name: Annotated[str | None, typer.Option(help="Folder below the data folder.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Default: $ENSEMBLE_SAE_DATA, or ./data.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    from_npy: Annotated[
        bool, typer.Option("--from-npy", help="Store the rows of .npy files, [N, d] each.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Store a language model's activations, or rows from .npy files, as chunks to train on."""
    options = {
        "model": model,
        "dataset": dataset,
        "text_field": text_field,
        "hooks": hook or None,
        "rows": rows,
        "context": context,
        "chunk_rows": chunk_rows,
        "dtype": dtype,
        "held_out": held_out,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "name": name,
    }
    command = _from_npy if from_npy else _from_model
    end(lambda: _stored(command, what or [], options, data_dir, overwrite), as_json)


def _stored(command: Command, *given: Any) -> int:
    try:
        stores, asked = command(*given)
    except KeyboardInterrupt:
        typer.echo(
            "\nInterrupted. What is written is kept: run the same command again"
            f"{' without --overwrite' if given[-1] else ''} to continue.",
            err=True,
        )
        return Ended(INTERRUPTED, interrupted=True)
    _print(stores, asked)
    return Ended(0, stores=[_facts(store) for store in stores])


def _from_model(
    what: list[str], options: dict[str, Any], data_dir: Path | None, overwrite: bool
) -> tuple[list[ChunkStore], int | None]:
    """The stores, and how many rows were asked for."""
    from ensemble_sae.config.recipe import load_recipe
    from ensemble_sae.data import location

    # Its advice on padded input is not for contexts without padding.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if len(what) > 1:
        raise UserError(
            "One recipe at a time.",
            found=" ".join(what),
            next_step="for .npy files say --from-npy",
        )
    if not what and not any(options.values()):
        raise UserError("Which activations?", next_step="python -m ensemble_sae.harvest embedded")
    recipe = load_recipe(what[0] if what else None, options)
    folder = location.data_dir(data_dir)

    from ensemble_sae.lm.makers import maker

    make = maker(recipe)
    if not overwrite and (stores := make.finished(recipe, folder)):
        typer.echo("Already harvested: nothing to do (--overwrite does it again).")
    else:
        typer.echo(f"{', '.join(recipe.hooks)} -> {folder / recipe.name}")
        with progress("loading the model") as show:

            def on_progress(now: Progress) -> None:
                show(now.rows, now.rows_total, _line(now))

            stores = make.harvest(recipe, folder, resume=not overwrite, on_progress=on_progress)
    return stores, recipe.rows


def _from_npy(
    what: list[str], options: dict[str, Any], data_dir: Path | None, overwrite: bool
) -> tuple[list[ChunkStore], int | None]:
    from ensemble_sae.data import location
    from ensemble_sae.data.arrays import map_npy
    from ensemble_sae.data.meta import DTYPES
    from ensemble_sae.data.store import ChunkStore

    if not what or not options["name"]:
        raise UserError(
            "--from-npy needs files, and a name for the store.",
            next_step="python -m ensemble_sae.harvest --from-npy FILES... --name NAME",
        )
    if options["dtype"] not in (None, *DTYPES):
        raise UserError("Unknown dtype.", found=options["dtype"], allowed=", ".join(DTYPES))
    hook = (options["hooks"] or ["activations"])[0]
    path = location.store_path(location.data_dir(data_dir), options["name"], hook)
    given = {
        key: options[key]
        for key in ("chunk_rows", "held_out", "dtype", "seed")
        if options[key] is not None
    }
    source = {"hook": hook, "model": options["model"], "files": what}
    store = ChunkStore.write(path, map_npy(what), source=source, overwrite=overwrite, **given)
    return [store], None


def _line(now: Progress) -> str:
    of = f" of {now.rows_total:,}" if now.rows_total else ""
    return f"{now.rows:,}{of} rows, {now.rows_per_second:,.0f} rows/s{left(now.seconds_left)}"


def _facts(store: ChunkStore) -> dict[str, Any]:
    """What a store holds; `mean`: the length of the mean row."""
    return {
        "hook": store.meta.source.hook,
        "rows": store.rows(),
        "held_out": store.rows(held_out=True),
        "d_activation": store.d_activation,
        "dtype": store.meta.dtype,
        "bytes": sum(chunk.bytes for chunk in store.meta.chunks),
        "mean": float(store.mean.norm()),
        "scale": store.scale,
        "left_out": store.meta.non_finite_rows.count,
        "path": store.path,
    }


def _print(stores: list[ChunkStore], asked: int | None) -> None:
    from ensemble_sae.data.disk import human_bytes

    heads = ("hook", "rows", "held out", "d", "dtype", "size", "|mean|", "scale", "path")
    table = [heads] + [
        (
            facts["hook"] or "",
            f"{facts['rows']:,}",
            f"{facts['held_out']:,}",
            str(facts["d_activation"]),
            facts["dtype"],
            human_bytes(facts["bytes"]),
            f"{facts['mean']:.4g}",
            f"{facts['scale']:.4g}",
            str(facts["path"]),
        )
        for facts in map(_facts, stores)
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        typer.echo("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    meta = stores[0].meta
    if asked is not None and meta.rows + meta.non_finite_rows.count < asked:
        typer.echo(f"The data set ended after {meta.rows:,} of {asked:,} rows.")
    for store in stores:
        left_out = store.meta.non_finite_rows
        if left_out.count:
            typer.echo(
                f"{left_out.count:,} rows were left out: not finite in {store.meta.dtype}: "
                + "; ".join(left_out.first[:5])
            )
            break  # the stores of one harvest leave out the same rows


if __name__ == "__main__":
    run(main)
