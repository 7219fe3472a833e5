"""Writing a chunk store, one complete chunk at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from ensemble_sae.data.disk import human_bytes, lock
from ensemble_sae.data.meta import (
    META,
    ChunkInfo,
    Dtype,
    Meta,
    NonFinite,
    Source,
    read_meta,
    write_meta,
)
from ensemble_sae.data.statistics import RunningStatistics, finite_rows
from ensemble_sae.errors import UserError
from ensemble_sae.files import TEMPORARY, sha256, write_tensors

_EXAMPLES = 20  # origins of left-out rows that meta.json keeps


class StoreWriter:
    """Adds chunks to a store; resumable after every chunk.

    A chunk file appears by atomic rename, then `meta.json` that knows of it. So whenever the
    process dies, the store is valid, and the next writer goes on after the last chunk that
    `meta.json` lists (`len(writer.chunks)`), with the same running statistics to the last bit.
    Leaving the `with` block without an exception marks the store complete.

    Args:
        path: the store's folder; made when missing.
        d_activation: values per row.
        dtype: of the stored activations: float16, bfloat16 or float32.
        source: where the rows come from: `model`, `hook`, `dataset`, `context`, `seed`, and
            whatever else must be the same when an interrupted store is continued.
        overwrite: remove the store that is there and start anew.

    Raises:
        UserError: on entering: another process is writing the store, or the store that is there
            differs in shape, dtype or source. On leaving: nothing was written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        d_activation: int,
        dtype: Dtype = "float16",
        source: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self.meta = Meta(
            d_activation=d_activation,
            dtype=dtype,
            rows=0,
            complete=False,
            chunks=[],
            source=Source(**(source or {})),
            mean=[0.0] * d_activation,
            variance=[0.0] * d_activation,
            scale=0.0,
        )

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.path)
        try:
            if self.overwrite:
                remove_store(self.path)
            for leftover in self.path.glob(f"{TEMPORARY}*"):
                leftover.unlink()
            if (self.path / META).exists():
                self.meta = self._continued(read_meta(self.path))
        except BaseException:
            os.close(self._lock)
            raise
        self._left_out = self.meta.non_finite_rows
        self._statistics = RunningStatistics(
            self.meta.training_rows(), self.meta.mean, self.meta.variance
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            os.close(self._lock)

    @property
    def chunks(self) -> list[ChunkInfo]:
        """The chunks that are safely on disk."""
        return self.meta.chunks

    def leave_out(self, count: int, origins: Sequence[str] = ()) -> None:
        """Note rows that were not finite; written with the next chunk, or at the end.

        Args:
            count: how many rows.
            origins: where the first of them came from, for people.
        """
        before = self._left_out
        self._left_out = NonFinite(
            count=before.count + count, first=[*before.first, *origins][:_EXAMPLES]
        )

    def append(self, columns: Mapping[str, Tensor], held_out: bool = False) -> ChunkInfo:
        """Write one chunk.

        Args:
            columns: `activations` `[N, d]` in the store's dtype, all finite, N >= 1; and any of
                `tokens`, `positions`, `documents`, int32 `[N]`.
            held_out: whether the chunk is for evaluation only.

        Raises:
            UserError: a value is not finite, or the disk is full.
        """
        self._check(columns)
        activations = columns["activations"]
        statistics = self._statistics
        if not held_out:
            statistics = statistics.copy()
            statistics.add(activations)
        index = len(self.meta.chunks)
        path = self.path / f"chunk-{index:05}.safetensors"
        try:
            write_tensors(path, columns)
            chunk = ChunkInfo(
                index=index,
                file=path.name,
                rows=len(activations),
                bytes=path.stat().st_size,
                sha256=sha256(path),
                held_out=held_out,
            )
            meta = self._with(chunk, statistics)
            write_meta(self.path, meta)
        except OSError as error:
            raise _disk_full(error, path, activations) from error
        self.meta, self._statistics = meta, statistics
        return chunk

    def _with(self, chunk: ChunkInfo, statistics: RunningStatistics) -> Meta:
        return self.meta.model_copy(
            update={
                "complete": False,
                "rows": self.meta.rows + chunk.rows,
                "chunks": [*self.meta.chunks, chunk],
                "mean": statistics.mean.tolist(),
                "variance": statistics.variance.tolist(),
                "scale": statistics.scale,
                "non_finite_rows": self._left_out,
            }
        )

    def _check(self, columns: Mapping[str, Tensor]) -> None:
        """Shapes are the caller's business (ValueError); values are the data's (UserError)."""
        activations = columns["activations"]
        n, d = activations.shape
        if n == 0 or d != self.meta.d_activation or activations.dtype != self.meta.torch_dtype:
            raise ValueError(
                f"activations: expected [N >= 1, {self.meta.d_activation}] {self.meta.dtype}, "
                f"found {list(activations.shape)} {activations.dtype}"
            )
        for name, column in columns.items():
            if name != "activations" and column.shape != (n,):
                raise ValueError(f"{name}: expected [{n}], found {list(column.shape)}")
        if not finite_rows(activations).all():
            raise UserError(
                "A row with a non-finite value may not enter a chunk.", where=str(self.path)
            )

    def _continued(self, found: Meta) -> Meta:
        """The meta that is there, if it is the one to continue."""
        wanted = {**self.meta.source.model_dump(), **_shape(self.meta)}
        check_same(self.path, wanted, {**found.source.model_dump(), **_shape(found)})
        return found

    def _finish(self) -> None:
        if not self.meta.chunks:
            raise UserError(
                "There is nothing to store: no rows.",
                where=str(self.path),
                allowed="at least one row of finite values",
            )
        finished = self.meta.model_copy(
            update={"complete": True, "non_finite_rows": self._left_out}
        )
        if finished != self.meta:
            write_meta(self.path, finished)
            self.meta = finished


def remove_store(path: Path) -> None:
    """Remove a store's own files, `meta.json` first so that no reader meets half of it."""
    (path / META).unlink(missing_ok=True)
    for file in path.glob("chunk-*.safetensors"):
        file.unlink()


def check_same(path: Path, wanted: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Check that the store in `path` was made from what is wanted now.

    Raises:
        UserError: names the first field that differs.
    """
    for name in sorted(wanted.keys() | there.keys()):
        # As JSON has it: a tuple comes back as a list.
        new, old = (
            list(v) if isinstance(v, tuple) else v for v in (wanted.get(name), there.get(name))
        )
        if new != old:
            raise UserError(
                "Another store is here already: it was made from something else.",
                where=f"{path}: {name}",
                found=repr(old),
                allowed=f"{new!r}, to continue it",
                next_step="use another name (--name), or --overwrite to replace the store",
            )


def _shape(meta: Meta) -> dict[str, Any]:
    return {"d_activation": meta.d_activation, "dtype": meta.dtype}


def _disk_full(error: OSError, path: Path, activations: Tensor) -> BaseException:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return UserError(
        "The disk is full. Everything written before this chunk is safe.",
        where=str(path),
        allowed=f"about {human_bytes(activations.nbytes)} for this chunk",
        next_step="free some space and run the same command again: it continues",
    )
