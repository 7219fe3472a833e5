"""Chunk stores from rows that exist already: arrays in memory, mapped files, streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_sae.data.disk import check_disk
from ensemble_sae.data.meta import DTYPES, META, Dtype, Source, read_meta
from ensemble_sae.data.statistics import finite_rows
from ensemble_sae.data.writer import StoreWriter, check_same
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.randomness import permutation

_EXAMPLES = 20  # numbers of left-out rows that are passed on
_SLAB_BYTES = 1 << 24  # of an array taken at a time, so that a mapped file is never read whole


def write_arrays(
    path: Path,
    arrays: Any,
    *,
    chunk_rows: int = 65_536,
    held_out: float = 0.05,
    dtype: Dtype | None = None,
    source: Mapping[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write rows as a chunk store.

    The rows are taken in windows of `chunk_rows / (1 - held_out)`, shuffled within the window;
    `chunk_rows` of them make a training chunk, the rest is held out. So memory is bounded by
    about two chunks, whatever the length of `arrays`. Of two rows or more at least one is held
    out (unless `held_out` is 0) and at least one is not.

    Args:
        path: the store's folder.
        arrays: `[N, d]`, NumPy array or tensor, or an iterable of such batches of the same d.
        chunk_rows: rows of a chunk.
        held_out: share of the rows that is held out, in [0, 1).
        dtype: stored dtype; that of `arrays` if None (float32 for float64).
        source: fields for `meta.json`: `model`, `hook`, `dataset`, ...
        seed: of the shuffle and of the choice of held-out rows.
        overwrite: replace a store that is there.

    Raises:
        UserError: a store is there; no rows; not floating point; another d in a later batch;
            not enough room on the disk.
    """
    if chunk_rows < 1 or not 0 <= held_out < 1:
        raise ValueError(f"chunk_rows {chunk_rows} >= 1 and held_out {held_out} in [0, 1)")
    source = {"seed": seed, **(source or {})}
    overwrite = overwrite or _is_unfinished(path, source)
    batches = _batches(arrays)
    first = next(batches, None)
    if first is None:
        raise UserError("There is nothing to store: no rows.", where=str(path))
    stored = dtype or _same_dtype(first)
    if hasattr(arrays, "shape"):
        check_disk(path, int(np.prod(arrays.shape)) * DTYPES[stored].itemsize)
    writer = StoreWriter(
        path,
        d_activation=first.shape[1],
        dtype=stored,
        source=source,
        overwrite=overwrite,
    )
    with writer:
        split = _Split(writer, chunk_rows, held_out, seed)
        for window in _windows(chain([first], batches), split.sizes(), DTYPES[stored]):
            split.add(window)
        split.flush()


@dataclass
class _Window:
    rows: Tensor  # [n, d], finite
    left_out: list[int]  # numbers of the rows, counted from 0, that were not finite


class _Split:
    """Deals the rows of each window out to a training chunk and to the held-out ones."""

    def __init__(self, writer: StoreWriter, chunk_rows: int, held_out: float, seed: int) -> None:
        self.writer, self.chunk_rows, self.share, self.seed = writer, chunk_rows, held_out, seed
        self.index = 0
        self.full = 0  # rows of the window that is being filled
        self.held: list[Tensor] = []
        self.rows = self.held_rows = 0  # dealt out so far

    def sizes(self) -> Iterator[int]:
        """The rows of each window: a whole training chunk and the held-out rows that go with it.

        So a chunk is full to the row, and no batch of it is lost.
        """
        together = self.chunk_rows * self.share / (1 - self.share)  # held out for each chunk
        for k in count():
            self.full = self.chunk_rows + ceil((k + 1) * together) - ceil(k * together)
            yield self.full

    def add(self, window: _Window) -> None:
        """Write the training rows of the window, keep the held-out ones for a chunk of theirs."""
        self.writer.leave_out(
            len(window.left_out), [f"row {row}" for row in window.left_out[:_EXAMPLES]]
        )
        n = len(window.rows)
        order = permutation(n, self.seed, "store", self.index)
        self.index += 1
        cut = n - self._held_of(n)
        self._append(window.rows[order[:cut]], held_out=False)
        if cut < n:
            self.held.append(window.rows[order[cut:]])
        self.rows += n
        self.held_rows += n - cut
        if sum(map(len, self.held)) >= self.chunk_rows:
            self.flush()

    def _held_of(self, n: int) -> int:
        """How many of the next `n` rows are held out, so that the share is kept over all."""
        if n == self.full:
            return n - self.chunk_rows
        held = round((self.rows + n) * self.share) - self.held_rows
        held = max(held, n - self.chunk_rows)
        if self.share and not self.held_rows:
            held = max(held, 1)
        return max(0, min(held, n if self.rows else n - 1))

    def flush(self) -> None:
        """Write the held-out rows that wait."""
        waiting = torch.cat(self.held) if self.held else torch.empty(0, 1)
        self.held = []
        for rows in torch.split(waiting, self.chunk_rows):
            self._append(rows, held_out=True)

    def _append(self, rows: Tensor, held_out: bool) -> None:
        if len(rows):
            self.writer.append({"activations": rows}, held_out)


def _windows(
    batches: Iterable[Tensor], sizes: Iterator[int], dtype: torch.dtype
) -> Iterator[_Window]:
    """Cut batches of any length into windows of these many finite rows; the last may be shorter."""
    buffer: Tensor | None = None
    size = next(sizes)
    filled, seen = 0, 0
    left_out: list[int] = []
    for batch in batches:
        if buffer is None:
            buffer = torch.empty(size + 1, batch.shape[1], dtype=dtype)  # sizes differ by one
        if batch.shape[1] != buffer.shape[1]:
            raise UserError(
                "The rows are not all of the same length.",
                where=f"the batch that begins at row {seen}",
                found=f"{batch.shape[1]} values per row",
                allowed=f"{buffer.shape[1]}, as in the first batch",
            )
        rows = batch.to(dtype)
        finite = finite_rows(rows)
        if not finite.all():
            left_out += (seen + (~finite).nonzero().flatten()).tolist()
            rows = rows[finite]
        seen += len(batch)
        while len(rows):
            taken = min(len(rows), size - filled)
            buffer[filled : filled + taken] = rows[:taken]
            filled, rows = filled + taken, rows[taken:]
            if filled == size:
                yield _Window(buffer[:size], left_out)
                filled, left_out, size = 0, [], next(sizes)
    if buffer is not None and (filled or left_out):
        yield _Window(buffer[:filled], left_out)


def _is_unfinished(path: Path, source: Mapping[str, Any]) -> bool:
    """Whether an interrupted call left a part of this same store, to be replaced."""
    if not (path / META).exists():
        return False
    found = read_meta(path)
    if found.complete:
        raise UserError(
            "A store is here already.",
            where=str(path),
            next_step="use another name, or --overwrite to replace it",
        )
    wanted = Source(**source).model_dump()
    check_same(path, wanted, found.source.model_dump())
    return True


def _batches(arrays: Any) -> Iterator[Tensor]:
    """The rows as tensors of bounded size, empty ones skipped."""
    if not hasattr(arrays, "shape"):
        for batch in arrays:
            yield from _batches(batch)
        return
    if len(arrays.shape) != 2 or arrays.shape[1] == 0:
        raise UserError(
            "Activations are rows of values: an array of two dimensions.",
            found=f"shape {list(arrays.shape)}",
            allowed="[N, d] with d >= 1",
        )
    step = max(1, _SLAB_BYTES // (arrays.shape[1] * 4))
    for start in range(0, arrays.shape[0], step):
        yield _tensor(arrays[start : start + step])


def _tensor(rows: Any) -> Tensor:
    if isinstance(rows, np.ndarray):
        # A copy: a mapped file is read-only, and may be of the other byte order.
        native = rows.astype(rows.dtype.newbyteorder("="), copy=True)
        if native.dtype.kind == "f" and native.dtype.itemsize <= 8:
            return torch.from_numpy(native)
        raise _not_floating(native.dtype)
    tensor: Tensor = rows.detach().cpu()
    if not tensor.is_floating_point():
        raise _not_floating(tensor.dtype)
    return tensor


def _not_floating(dtype: object) -> UserError:
    return UserError(
        "Activations are floating point numbers.",
        found=str(dtype).removeprefix("torch."),
        allowed="float16, bfloat16, float32 or float64",
    )


def _same_dtype(rows: Tensor) -> Dtype:
    names: dict[torch.dtype, Dtype] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
    return names.get(rows.dtype, "float32")


def map_npy(files: Iterable[str | Path]) -> list[Any]:
    """Map `.npy` files of shape `[N, d]`, without reading them and without pickle.

    Raises:
        UserError: a file is missing.
        CorruptFile: not a plain array of numbers of two dimensions.
    """
    mapped = []
    for file in map(Path, files):
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError("A file is missing.", where=str(file)) from None
        except (ValueError, OSError, EOFError) as error:
            raise CorruptFile(
                "This is not a .npy file of numbers.", where=str(file), found=str(error)
            ) from None
        if not isinstance(array, np.ndarray) or array.ndim != 2:
            raise CorruptFile(
                "Activations are rows of values: an array of two dimensions.",
                where=str(file),
                found=f"shape {list(getattr(array, 'shape', []))}",
                allowed="[N, d]",
            )
        mapped.append(array)
    return mapped
