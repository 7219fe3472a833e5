"""The stores of a recipe in their folders: with their rows, or with what makes them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.disk import check_disk, lock
from ensemble_sae.data.location import store_path
from ensemble_sae.data.meta import DTYPES, META, read_meta, write_meta
from ensemble_sae.data.progress import Progress
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.synthetic.features import truth_of
from ensemble_sae.data.synthetic.rows import chunk_of_rows
from ensemble_sae.data.synthetic.store import cut, describe
from ensemble_sae.data.truth import TRUTH
from ensemble_sae.data.writer import StoreWriter, check_same, remove_store
from ensemble_sae.files import write_tensors


def harvest(
    recipe: SyntheticRecipe,
    data_dir: str | Path,
    *,
    resume: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[ChunkStore]:
    """Write one store per distribution; goes on after the last complete chunk.

    Rows that are made when they are read (`on_the_fly`) need no more than their description.

    Raises:
        UserError: the stores there are of another recipe; no room on the disk.
    """
    if resume and (done := finished(recipe, data_dir)):
        return done
    if not recipe.on_the_fly:
        width = DTYPES[recipe.dtype].itemsize * recipe.d_activation
        check_disk(Path(data_dir), recipe.rows * len(recipe.hooks) * width)
    for number, (hook, path) in enumerate(_paths(recipe, data_dir).items()):
        if recipe.on_the_fly:
            _describe(recipe, hook, path, resume)
        else:
            _write(recipe, hook, path, resume, number, on_progress)
    return [ChunkStore.open(path) for path in _paths(recipe, data_dir).values()]


def finished(recipe: SyntheticRecipe, data_dir: str | Path) -> list[ChunkStore]:
    """The recipe's stores if all of them are there and complete, else nothing.

    Raises:
        UserError: a store that is there was made from another recipe.
    """
    stores = []
    for hook, path in _paths(recipe, data_dir).items():
        if (path / META).exists():
            store = ChunkStore.open(path)
            wanted, there = recipe.source(hook), store.meta.source.model_dump()
            check_same(path, wanted, {name: there.get(name) for name in wanted})
            stores.append(store)
    complete = len(stores) == len(recipe.hooks) and all(store.meta.complete for store in stores)
    return stores if complete else []


def widths(recipe: SyntheticRecipe) -> dict[str, int]:
    """Values per row of each store."""
    return dict.fromkeys(recipe.hooks, recipe.d_activation)


def _paths(recipe: SyntheticRecipe, data_dir: str | Path) -> dict[str, Path]:
    return {hook: store_path(data_dir, recipe.name, hook) for hook in recipe.hooks}


def _describe(recipe: SyntheticRecipe, hook: str, path: Path, resume: bool) -> None:
    """Write what the rows are made from."""
    path.mkdir(parents=True, exist_ok=True)
    held = lock(path)
    try:
        made = describe(recipe, hook)
        if not resume:
            remove_store(path)
        if (path / META).exists():
            check_same(path, made.source.model_dump(), read_meta(path).source.model_dump())
        write_tensors(path / TRUTH, truth_of(recipe)._asdict())
        write_meta(path, made)
    finally:
        os.close(held)


def _write(
    recipe: SyntheticRecipe,
    hook: str,
    path: Path,
    resume: bool,
    number: int,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    began, made = time.monotonic(), 0
    before = number * recipe.rows
    with StoreWriter(
        path,
        d_activation=recipe.d_activation,
        dtype=recipe.dtype,
        source=recipe.source(hook),
        overwrite=not resume,
    ) as writer:
        write_tensors(path / TRUTH, truth_of(recipe)._asdict())
        there = len(writer.chunks)
        for chunk, (rows, aside) in enumerate(cut(recipe)):
            before += rows if chunk < there else 0
            if chunk < there:
                continue
            columns = {"activations": chunk_of_rows(recipe, hook, rows, chunk)}
            columns["activations"] = columns["activations"].to(DTYPES[recipe.dtype])
            writer.append(columns, held_out=aside)
            made += rows
            if on_progress is not None:
                speed = made / max(time.monotonic() - began, 1e-9)
                on_progress(Progress(before + made, recipe.rows * len(recipe.hooks), speed))
