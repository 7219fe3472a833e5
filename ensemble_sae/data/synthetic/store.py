"""A store without files of rows: its chunks are made when they are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.meta import DTYPES, ChunkInfo, Meta, Source
from ensemble_sae.data.statistics import RunningStatistics
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.synthetic.features import truth_of
from ensemble_sae.data.synthetic.rows import chunk_of_rows
from ensemble_sae.data.truth import Truth
from ensemble_sae.errors import CorruptFile

ENOUGH_ROWS = 65_536  # of which mean and scale are taken
_KEPT = ("name", "hooks")  # of a recipe, that its stores' source does not have


class SyntheticStore(ChunkStore):
    """The rows of one distribution of a recipe, made when they are read; no disk is needed.

        store = SyntheticStore.of(load_recipe("toy"), "correlated")
        store.activations(0)

    A chunk is a pure function of the recipe, the distribution and the chunk's number: it is the
    same in every process, in every epoch, and after an interruption. The list of chunks names files
    that would hold the rows if they were written; the checksum of a chunk is that of what it is a
    function of. The statistics are those of the first
    training chunks, of 65,536 rows or a little more.
    """

    @classmethod
    def of(cls, recipe: SyntheticRecipe, hook: str, path: Path | None = None) -> SyntheticStore:
        """The store of a recipe, in memory alone.

        Args:
            path: what messages call it.
        """
        return cls(path or Path(f"{recipe.name}/{hook}"), describe(recipe, hook))

    @property
    def recipe(self) -> SyntheticRecipe:
        """What the rows are made from.

        Raises:
            CorruptFile: the description of the store is no recipe.
        """
        return recipe_of(self)

    @property
    def truth(self) -> Truth:
        """The features that the rows are made of."""
        return truth_of(self.recipe)

    def refresh(self) -> SyntheticStore:
        """Nothing adds chunks to it. Returns self."""
        return self

    def activations(self, index: int, verify: bool = False) -> Tensor:
        """Make the rows of chunk `index`: `[N, d]` in the store's dtype, on the CPU.

        Raises:
            UserError: no such chunk.
            CorruptFile: with `verify`, the description was altered.
        """
        if verify:
            self.verify(index)
        chunk, hook = self._chunk(index), str(self.meta.source.hook)
        return chunk_of_rows(self.recipe, hook, chunk.rows, index).to(self.meta.torch_dtype)

    def columns(self, index: int) -> dict[str, Tensor]:
        """No columns beside the activations: rows come from no text."""
        self._chunk(index)
        return {}

    def verify(self, index: int) -> None:
        """Compare what chunk `index` is a function of with what was noted.

        Raises:
            UserError: no such chunk.
            CorruptFile: the description was altered.
        """
        chunk = self._chunk(index)
        found = _checksum(self.meta.source, index, chunk.rows)
        if found != chunk.sha256:
            raise CorruptFile(
                "The description of synthetic rows was altered since it was written.",
                where=f"{self.path}: chunks.{index}",
                found=f"SHA-256 {found}",
                allowed=f"SHA-256 {chunk.sha256}",
                next_step="remove the folder: it is made again when it is needed",
            )


def describe(recipe: SyntheticRecipe, hook: str) -> Meta:
    """The description of a store whose rows are made when they are read."""
    source = Source(**recipe.source(hook))
    width = recipe.d_activation * DTYPES[recipe.dtype].itemsize
    chunks = [
        ChunkInfo(
            index=index,
            file=f"chunk-{index:05}",
            rows=rows,
            bytes=rows * width,
            sha256=_checksum(source, index, rows),
            held_out=aside,
        )
        for index, (rows, aside) in enumerate(cut(recipe))
    ]
    statistics = _statistics(recipe, hook, [chunk for chunk in chunks if not chunk.held_out])
    return Meta(
        d_activation=recipe.d_activation,
        dtype=recipe.dtype,
        rows=recipe.rows,
        complete=True,
        chunks=chunks,
        source=source,
        mean=statistics.mean.tolist(),
        variance=statistics.variance.tolist(),
        scale=statistics.scale,
    )


def _statistics(recipe: SyntheticRecipe, hook: str, chunks: list[ChunkInfo]) -> RunningStatistics:
    """Of the first chunks, as many as have enough rows."""
    found = RunningStatistics.empty(recipe.d_activation)
    for chunk in chunks:
        if found.rows >= ENOUGH_ROWS:
            break
        rows = chunk_of_rows(recipe, hook, chunk.rows, chunk.index)
        found.add(rows.to(DTYPES[recipe.dtype]))
    return found


def cut(recipe: SyntheticRecipe) -> Iterator[tuple[int, bool]]:
    """The rows of each chunk, and whether it is held out: the held-out ones come first."""
    held_out = round(recipe.rows * recipe.held_out)
    for total, aside in ((held_out, True), (recipe.rows - held_out, False)):
        for start in range(0, total, recipe.chunk_rows):
            yield min(recipe.chunk_rows, total - start), aside


def recipe_of(store: ChunkStore) -> SyntheticRecipe:
    """The recipe that a store of synthetic rows was made from.

    Raises:
        CorruptFile: its description is no recipe for synthetic rows.
    """
    values = store.meta.source.model_dump()
    known = {n: values[n] for n in SyntheticRecipe.model_fields if n in values and n not in _KEPT}
    try:
        return SyntheticRecipe.model_validate(
            {**known, "name": "rows", "hooks": [values.get("hook")]}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise CorruptFile(
            "The description of synthetic rows is damaged.",
            where=f"{store.path}: source.{'.'.join(map(str, problem['loc']))}",
            found=repr(problem["input"])[:80],
            allowed=problem["msg"].removeprefix("Input should be "),
        ) from None


def _checksum(source: Source, index: int, rows: int) -> str:
    named = json.dumps([source.model_dump(), index, rows], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()
