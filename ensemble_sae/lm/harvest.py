"""The harvest: a language model runs once over a text, the rows of its hooks become stores."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.data.disk import check_disk
from ensemble_sae.data.location import store_path
from ensemble_sae.data.meta import DTYPES, META
from ensemble_sae.data.progress import Progress
from ensemble_sae.data.statistics import finite_rows
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.writer import StoreWriter, check_same
from ensemble_sae.errors import UserError
from ensemble_sae.lm.documents import documents, with_sides
from ensemble_sae.lm.harvest_contexts import Block, blocks
from ensemble_sae.lm.harvest_model import (
    fingerprint,
    folder_fingerprint,
    hook_widths,
    tokeniser,
)
from ensemble_sae.randomness import permutation

_COLUMN_BYTES = 12  # tokens, positions, documents: int32 each
_EXAMPLES = 20  # documents with non-finite rows that are named


def harvest(
    recipe: Recipe,
    data_dir: str | Path,
    *,
    resume: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    on_chunk: Callable[[int, bool], None] | None = None,
) -> list[ChunkStore]:
    """Run the recipe's model over its text once; write one store per hook.

    The stores are aligned: row r of chunk c is the same token in all of them. A row that is not
    finite in one of them (float16 ends at 65,504) is left out of all, counted and reported.
    Interrupted at any moment, the next call goes on at the first chunk that is not in all the
    stores, and ends with the same files. Memory: one chunk of every hook, and the model.

    Args:
        recipe: what to harvest.
        data_dir: the stores are `<data_dir>/<recipe.name>/<hook>/`.
        resume: continue what is there; False removes it and starts anew.
        on_progress: called after every forward.
        on_chunk: called with (index, held_out) when a chunk is in all the stores.

    Returns:
        The complete stores, in the order of `recipe.hooks`.

    Raises:
        UserError: the stores there are of another recipe; unknown hook; no room on the disk;
            no text; all rows of a chunk non-finite.
    """
    if resume and (done := finished(recipe, data_dir)):
        return done
    from ensemble_sae.lm.load import check_hooks, load_model

    local = folder_fingerprint(recipe.model)  # before the weights are read: of these or older ones
    bridge = load_model(recipe.model, recipe.device, recipe.model_dtype)
    check_hooks(bridge, recipe.hooks)
    paths = _paths(recipe, data_dir)
    d = hook_widths(bridge, recipe.hooks, recipe.context)
    weights = local or fingerprint(bridge)
    with ExitStack() as stack:
        writers = {
            hook: stack.enter_context(
                StoreWriter(
                    paths[hook],
                    d_activation=d[hook],
                    dtype=recipe.dtype,
                    source={**recipe.source(hook), "weights": weights},
                    overwrite=not resume,
                )
            )
            for hook in recipe.hooks
        }
        _check_room(recipe, writers)
        _Harvest(recipe, bridge, writers, on_progress, on_chunk).run()
    return [ChunkStore.open(path) for path in paths.values()]


def finished(recipe: Recipe, data_dir: str | Path) -> list[ChunkStore]:
    """The recipe's stores if all of them are there and complete, else nothing.

    Raises:
        UserError: a store that is there was made from another recipe, or by a local model whose
            weights have changed since; names the first difference.
    """
    stores = []
    weights = folder_fingerprint(recipe.model)
    for hook, path in _paths(recipe, data_dir).items():
        if (path / META).exists():
            store = ChunkStore.open(path)
            wanted = recipe.source(hook) | ({"weights": weights} if weights else {})
            there = store.meta.source.model_dump()
            check_same(path, wanted, {name: there.get(name) for name in wanted})
            stores.append(store)
    complete = len(stores) == len(recipe.hooks) and all(store.meta.complete for store in stores)
    return stores if complete else []


def widths(recipe: Recipe) -> dict[str, int]:
    """Values per row of each of the recipe's hooks, from one forward of the model.

    Raises:
        UserError: the model cannot be loaded, or a hook is unknown.
    """
    from ensemble_sae.lm.load import check_hooks, load_model

    bridge = load_model(recipe.model, "cpu", recipe.model_dtype)
    check_hooks(bridge, recipe.hooks)
    return hook_widths(bridge, recipe.hooks, recipe.context)


class _Harvest:
    """One call of `harvest`, once everything is open."""

    def __init__(
        self,
        recipe: Recipe,
        bridge: Any,
        writers: dict[str, StoreWriter],
        on_progress: Callable[[Progress], None] | None,
        on_chunk: Callable[[int, bool], None] | None,
    ) -> None:
        self.recipe, self.bridge, self.writers = recipe, bridge, writers
        self.on_progress = on_progress or (lambda progress: None)
        self.on_chunk = on_chunk or (lambda index, held_out: None)
        self.rows = 0  # done, with those of earlier calls
        self.rows_before = 0  # of earlier calls
        self.start = time.monotonic()

    def run(self) -> None:
        """Make every chunk that is not in all the stores yet."""
        sided = with_sides(documents(self.recipe), self.recipe.held_out, self.recipe.seed)
        tokenise, bos = tokeniser(self.bridge)
        there = min(len(writer.chunks) for writer in self.writers.values())
        for index, block in enumerate(blocks(self.recipe, sided, tokenise, bos)):
            if index < there:
                self.rows += block.rows
                self.rows_before, self.start = self.rows, time.monotonic()
                continue
            self._store(index, block, *self._rows(index, block))
            self.on_chunk(index, block.held_out)

    def _rows(self, index: int, block: Block) -> tuple[dict[str, Tensor], Tensor]:
        """Run the block: per hook `[rows, d]` in the chunk's order, and which rows are finite.

        The rows go to their shuffled places one forward at a time, so that there is never a
        second copy of a chunk.
        """
        from ensemble_sae.lm.load import run_hooks

        place = _order(self.recipe, index, block)
        finite = torch.ones(block.rows, dtype=torch.bool)
        rows: dict[str, Tensor] = {}
        start = 0
        for tokens, keep in zip(
            torch.split(block.tokens, self.recipe.batch_size),
            torch.split(block.keep, self.recipe.batch_size),
            strict=True,
        ):
            with torch.inference_mode():
                run = run_hooks(self.bridge, tokens.long(), self.recipe.hooks)
                stop = start + int(keep.sum())
                for hook, activations in run.items():
                    kept = activations[keep.to(activations.device)]
                    kept = kept.to(DTYPES[self.recipe.dtype]).cpu()
                    if hook not in rows:
                        rows[hook] = torch.empty(block.rows, kept.shape[1], dtype=kept.dtype)
                    rows[hook][place[start:stop]] = kept
                    finite[place[start:stop]] &= finite_rows(kept)
            start = stop
            self._report(index, start)
        self.rows += block.rows
        return rows, finite

    def _store(self, index: int, block: Block, rows: dict[str, Tensor], finite: Tensor) -> None:
        """Append the chunk to the stores that do not have it."""
        columns = _columns(block, _order(self.recipe, index, block))
        count, origins = int((~finite).sum()), _origins(block, columns["documents"][~finite])
        if count == len(finite):
            raise UserError(
                f"All rows of a chunk have a value that is not finite in {self.recipe.dtype}.",
                where=f"chunk {index} of {', '.join(rows)}",
                next_step='store them as dtype = "bfloat16" or "float32"',
            )
        if count:
            columns = {name: column[finite] for name, column in columns.items()}
        for hook, writer in self.writers.items():
            if len(writer.chunks) > index:  # written just before an interruption
                _check_aligned(writer, index, len(finite) - count)
                continue
            activations = rows.pop(hook)
            writer.leave_out(count, origins)
            writer.append(
                {"activations": activations[finite] if count else activations, **columns},
                block.held_out,
            )

    def _report(self, index: int, rows: int) -> None:
        rows += self.rows
        seconds = time.monotonic() - self.start
        self.on_progress(Progress(rows, self.recipe.rows, (rows - self.rows_before) / seconds))


def _paths(recipe: Recipe, data_dir: str | Path) -> dict[str, Path]:
    return {hook: store_path(data_dir, recipe.name, hook) for hook in recipe.hooks}


def _order(recipe: Recipe, index: int, block: Block) -> Tensor:
    """Where each kept row of the block goes in chunk `index`, the same for all hooks."""
    return permutation(block.rows, recipe.seed, "harvest", index)


def _columns(block: Block, place: Tensor) -> dict[str, Tensor]:
    """Tokens, positions and documents of the chunk's rows, int32 `[rows]`."""
    positions = torch.arange(block.tokens.shape[1], dtype=torch.int32).expand_as(block.tokens)
    columns = {"tokens": block.tokens, "positions": positions, "documents": block.documents}
    shuffled = {name: torch.empty(len(place), dtype=torch.int32) for name in columns}
    for name, values in columns.items():
        shuffled[name][place] = values[block.keep]
    return shuffled


def _origins(block: Block, of: Tensor) -> list[str]:
    """Documents of left-out rows, for people: `document 17 (json/decoder.py): 3 rows`."""
    indices, counts = torch.unique(of, return_counts=True)
    return [
        f"document {index} ({block.names[index]}): {count} rows"
        for index, count in islice(zip(indices.tolist(), counts.tolist(), strict=True), _EXAMPLES)
    ]


def _check_aligned(writer: StoreWriter, index: int, rows: int) -> None:
    found = writer.chunks[index].rows
    if found != rows:
        raise UserError(
            "The stores of this harvest would not be aligned: other rows were not finite.",
            where=f"{writer.path}: chunk {index}",
            found=f"{found} rows",
            allowed=f"{rows} rows",
            next_step="harvest all hooks again, under another name or with --overwrite",
        )


def _check_room(recipe: Recipe, writers: dict[str, StoreWriter]) -> None:
    if recipe.rows is None:
        return
    needed = 0
    for writer in writers.values():
        row = writer.meta.d_activation * DTYPES[recipe.dtype].itemsize + _COLUMN_BYTES
        needed += max(0, recipe.rows - writer.meta.rows) * row
        folder = writer.path
    check_disk(folder, needed, "keep fewer rows (--rows) or choose another folder (--data-dir)")
