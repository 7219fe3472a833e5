"""A few rows of a store, for what must see rows before the training begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.randomness import permutation


class Chunks(Protocol):
    """What is asked of a store: its training chunks in order, and the rows of one."""

    def chunks(self) -> Sequence[Any]:
        """The training chunks, each with its `index`."""
        ...

    def activations(self, index: int) -> Tensor:
        """The rows of chunk `index`, `[N, d]`."""
        ...


def sample_rows(store: Chunks, count: int, seed: int) -> Tensor:
    """`count` rows of the first training chunk, or all if it has fewer: float32 `[<= count, d]`.

    Drawn without replacement; a pure function of the chunk and the seed. Of the first chunk only:
    a sweep that is fed while rows are still harvested has nothing else when it begins, and a
    worker that is started again must find the same rows, however many chunks there are by then.
    Rows are shuffled within a chunk when it is written, but the chunk is of the first documents.

    The rows are as stored: in the model's units, not in those of a sweep with `normalise`.

    Raises:
        UserError: the store has no training chunk yet.
        CorruptFile: the chunk is missing or damaged.
    """
    chunks = store.chunks()
    if not chunks:
        raise UserError(
            "There are no rows to sample yet.",
            where=str(getattr(store, "path", "store")),
            found="no training chunk",
            allowed="at least one",
            next_step="harvest the rows first",
        )
    first = chunks[0].index
    rows = store.activations(first)
    order = permutation(rows.shape[0], seed, "sample", first)[:count]
    return rows.index_select(0, order.to(rows.device)).float()
