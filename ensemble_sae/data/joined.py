"""Several stores of one harvest read as one: row r of chunk c of all of them, side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from ensemble_sae.data.meta import DTYPES, ChunkInfo, Meta
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError

_NEXT = "harvest the hook points together, by one recipe: python -m ensemble_sae.harvest RECIPE"


class JoinedStore:
    """Aligned stores, for reading as if their rows `[N, d_i]` were one `[N, d_1 + d_2 + ...]`.

    While a harvest still writes, one store may be a chunk ahead: the chunks are those that all
    stores have. Rows are joined when a chunk is asked for, which copies it.

    Args:
        stores: in the order in which their values come in a row; the same store may be there
            twice.

    Raises:
        UserError: the stores are not of one harvest; names them and the first difference.
    """

    def __init__(self, stores: Sequence[ChunkStore]) -> None:
        self.stores = tuple(stores)
        self.meta = _join(self.stores)

    @property
    def path(self) -> Path:
        """What to call the joined store in messages: there is no such folder."""
        return self.stores[0].path.with_name(" + ".join(store.path.name for store in self.stores))

    @property
    def d_activation(self) -> int:
        """Values per joined row."""
        return self.meta.d_activation

    @property
    def widths(self) -> tuple[int, ...]:
        """Values per row of each store."""
        return tuple(store.d_activation for store in self.stores)

    @property
    def mean(self) -> Tensor:
        """Mean of the training rows, float32 `[d]`, of each store over the chunks it has."""
        return torch.tensor(self.meta.mean, dtype=torch.float32)

    @property
    def variance(self) -> Tensor:
        """Variance of the training rows per dimension, float32 `[d]`; as `mean`."""
        return torch.tensor(self.meta.variance, dtype=torch.float32)

    def refresh(self) -> JoinedStore:
        """Read every `meta.json` again. Returns self.

        Raises:
            UserError: what was added is not aligned.
        """
        for store in self.stores:
            store.refresh()
        self.meta = _join(self.stores)
        return self

    def chunks(self, held_out: bool = False) -> list[ChunkInfo]:
        """The training chunks, or the held-out ones, that all stores have."""
        return [chunk for chunk in self.meta.chunks if chunk.held_out == held_out]

    def rows(self, held_out: bool = False) -> int:
        """The number of training rows, or of held-out ones, in these chunks."""
        return sum(chunk.rows for chunk in self.chunks(held_out))

    def activations(self, index: int, verify: bool = False) -> Tensor:
        """The joined rows of chunk `index`: a copy `[N, d]`, on the CPU.

        Stores of different dtypes are joined in the one that holds both.

        Args:
            verify: compare the files' checksums first, and that the rows are of the same tokens.

        Raises:
            UserError: no such chunk, or rows of other tokens.
            CorruptFile: as `ChunkStore.activations`.
        """
        if verify:
            self.verify(index)
        return torch.cat([store.activations(index) for store in self.stores], 1)

    def verify(self, index: int) -> None:
        """Compare the checksums of chunk `index`, and its tokens where the stores have them.

        Hook points that were added to a harvest later come from another pass of the model, which
        may have left out other rows (those that were not finite).

        Raises:
            UserError, CorruptFile: as `activations`.
        """
        first, *others = self.stores
        first.verify(index)
        there = first.columns(index)
        for store in others:
            store.verify(index)
            for name, column in store.columns(index).items():
                if name in there and not torch.equal(column, there[name]):
                    row = int((column != there[name]).nonzero()[0])
                    found = f"{int(column[row])} and {int(there[name][row])}"
                    raise _unaligned((store, first), f"chunk {index}: {name}, row {row}", found)


Rows = ChunkStore | JoinedStore


def join(stores: Sequence[ChunkStore]) -> Rows:
    """One store as it is, several joined.

    Raises:
        UserError: as `JoinedStore`.
    """
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


def open_rows(folders: Sequence[str | Path]) -> Rows:
    """Open the stores in these folders and join them, in this order.

    Raises:
        UserError, CorruptFile: as `ChunkStore.open` and `JoinedStore`.
    """
    return join([ChunkStore.open(folder) for folder in folders])


def _join(stores: Sequence[ChunkStore]) -> Meta:
    for store in stores[1:]:
        _check_aligned(stores[0], store)
    metas = [store.meta for store in stores]
    chunks = [_chunk(same) for same in zip(*(meta.chunks for meta in metas), strict=False)]
    variance = [value for meta in metas for value in meta.variance]
    dtype = reduce(torch.promote_types, (meta.torch_dtype for meta in metas))
    values = {
        "d_activation": sum(meta.d_activation for meta in metas),
        "dtype": next(name for name, known in DTYPES.items() if known == dtype),
        "rows": sum(chunk.rows for chunk in chunks),
        "complete": all(meta.complete for meta in metas),
        "chunks": chunks,
        "mean": [value for meta in metas for value in meta.mean],
        "variance": variance,
        "scale": sqrt(sum(variance) / len(variance)),
    }
    return metas[0].model_copy(update=values)


def _chunk(same: Sequence[ChunkInfo]) -> ChunkInfo:
    digest = hashlib.sha256("".join(chunk.sha256 for chunk in same).encode()).hexdigest()
    size = sum(chunk.bytes for chunk in same)
    return same[0].model_copy(update={"bytes": size, "sha256": digest})


def _check_aligned(first: ChunkStore, other: ChunkStore) -> None:
    """Both of one harvest: the same source but for the hook, the same rows in the same chunks."""
    sources = [store.meta.source.model_dump() for store in (first, other)]
    for name in sorted((sources[0].keys() | sources[1].keys()) - {"hook"}):
        mine, theirs = (source.get(name) for source in sources)
        if mine != theirs:
            raise _unaligned((first, other), f"source.{name}", f"{mine!r} and {theirs!r}")
    lists = first.meta.chunks, other.meta.chunks
    for a, b in zip(*lists, strict=False):
        if (a.rows, a.held_out) != (b.rows, b.held_out):
            found = " and ".join(
                f"{c.rows:,} {'held-out' if c.held_out else 'training'} rows" for c in (a, b)
            )
            raise _unaligned((first, other), f"chunk {a.index}", found)
    for complete, longer in ((first, other), (other, first)):
        counts = len(complete.meta.chunks), len(longer.meta.chunks)
        if complete.meta.complete and counts[0] < counts[1]:
            found = f"{len(lists[0])} and {len(lists[1])} chunks"
            raise _unaligned((first, other), "the number of chunks", found)


def _unaligned(stores: Sequence[ChunkStore], what: str, found: str) -> UserError:
    return UserError(
        "These stores cannot be joined: their rows are not of the same tokens.",
        where=f"{' and '.join(str(store.path) for store in stores)}: {what}",
        found=found,
        allowed="the same in both",
        next_step=_NEXT,
    )
