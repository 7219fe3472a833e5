"""The chunk store: rows of activations in memory-mapped files that say what they are.

    <store>/meta.json                  what, from where, checksums, statistics (`meta.Meta`)
    <store>/chunk-00000.safetensors    activations [N, d]; from language models also
                                       tokens, positions, documents: int32 [N]

Rows are shuffled within a chunk. Some chunks are held out: never trained on. A chunk is listed
in `meta.json` only after it is complete, so a store can be read while it is still written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.data.meta import ChunkInfo, Dtype, Meta, read_meta
from ensemble_sae.data.truth import TRUTH, Truth, read_truth
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import open_tensors, sha256

COLUMNS = ("tokens", "positions", "documents")


class ChunkStore:
    """A store that is there, for reading. Cheap to open, cheap to send to another process."""

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path = path
        self.meta = meta

    @classmethod
    def open(cls, path: str | Path) -> ChunkStore:
        """Open the store in the folder `path`: a `SyntheticStore` if its rows are made when read.

        Raises:
            UserError: there is none.
            CorruptFile: its description is damaged or of a newer schema.
        """
        meta = read_meta(Path(path))
        if meta.source.is_made_when_read:
            from ensemble_sae.data.synthetic.store import SyntheticStore

            return SyntheticStore(Path(path), meta)
        return cls(Path(path), meta)

    @classmethod
    def write(
        cls,
        path: str | Path,
        arrays: Any,
        *,
        chunk_rows: int = 65_536,
        held_out: float = 0.05,
        dtype: Dtype | None = None,
        source: Mapping[str, Any] | None = None,
        seed: int = 0,
        overwrite: bool = False,
    ) -> ChunkStore:
        """Write rows that exist already and open the store; see `arrays.write_arrays`."""
        from ensemble_sae.data.arrays import write_arrays

        write_arrays(
            Path(path),
            arrays,
            chunk_rows=chunk_rows,
            held_out=held_out,
            dtype=dtype,
            source=source,
            seed=seed,
            overwrite=overwrite,
        )
        return cls.open(path)

    def refresh(self) -> ChunkStore:
        """Read `meta.json` again: another process may have added chunks. Returns self."""
        self.meta = read_meta(self.path)
        return self

    @property
    def d_activation(self) -> int:
        """Values per row."""
        return self.meta.d_activation

    @property
    def mean(self) -> Tensor:
        """Mean of the training rows, float32 `[d]`."""
        return torch.tensor(self.meta.mean, dtype=torch.float32)

    @property
    def variance(self) -> Tensor:
        """Variance of the training rows per dimension, float32 `[d]`."""
        return torch.tensor(self.meta.variance, dtype=torch.float32)

    @property
    def scale(self) -> float:
        """`sqrt(E[||x - mean||^2] / d)` over the training rows."""
        return self.meta.scale

    @property
    def truth(self) -> Truth | None:
        """The features that the rows were made of, where they are known.

        Raises:
            CorruptFile: their file is damaged.
        """
        path = self.path / TRUTH
        return read_truth(path) if path.is_file() else None

    def chunks(self, held_out: bool = False) -> list[ChunkInfo]:
        """The training chunks, or the held-out ones, in the order they were written."""
        return [chunk for chunk in self.meta.chunks if chunk.held_out == held_out]

    def rows(self, held_out: bool = False) -> int:
        """The number of training rows, or of held-out ones."""
        return sum(chunk.rows for chunk in self.chunks(held_out))

    def activations(self, index: int, verify: bool = False) -> Tensor:
        """Map the rows of chunk `index`: `[N, d]` in the stored dtype, on the CPU.

        Nothing is copied: the pages are shared with every process that maps the same chunk. The
        tensor is for reading (a write would stay private to it).

        Args:
            verify: compare the file's checksum first, which reads it all.

        Raises:
            UserError: no such chunk.
            CorruptFile: the file is missing, truncated, or not what `meta.json` says; names the
                file, the tensor, what was expected and what was found.
        """
        if verify:
            self.verify(index)
        chunk, file = self._chunk(index), self._open(index)
        expected = ([chunk.rows, self.d_activation], self.meta.dtype)
        return self._tensor(file, chunk, "activations", *expected)

    def columns(self, index: int) -> dict[str, Tensor]:
        """Map the columns beside the activations: those there are of `COLUMNS`, int32 `[N]`.

        Raises:
            UserError, CorruptFile: as `activations`.
        """
        chunk, file = self._chunk(index), self._open(index)
        there = set(file.keys())
        return {
            name: self._tensor(file, chunk, name, [chunk.rows], "int32")
            for name in COLUMNS
            if name in there
        }

    def verify(self, index: int) -> None:
        """Compare the checksum of chunk `index` with the one noted when it was written.

        Raises:
            UserError: no such chunk.
            CorruptFile: missing, truncated or altered.
        """
        chunk = self._chunk(index)
        self._check_size(chunk)
        found = sha256(self.path / chunk.file)
        if found != chunk.sha256:
            raise CorruptFile(
                "A chunk's content has changed since it was written.",
                where=str(self.path / chunk.file),
                found=f"SHA-256 {found}",
                allowed=f"SHA-256 {chunk.sha256}",
                next_step="harvest it again (--overwrite)",
            )

    def _chunk(self, index: int) -> ChunkInfo:
        if not 0 <= index < len(self.meta.chunks):
            raise UserError(
                "There is no such chunk.",
                where=str(self.path),
                found=str(index),
                allowed=f"0 to {len(self.meta.chunks) - 1}",
            )
        return self.meta.chunks[index]

    def _check_size(self, chunk: ChunkInfo) -> None:
        path = self.path / chunk.file
        found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no such file"
        if found != f"{chunk.bytes:,} bytes":
            raise CorruptFile(
                "A chunk is missing or of the wrong size.",
                where=str(path),
                found=found,
                allowed=f"{chunk.bytes:,} bytes",
                next_step="harvest it again (--overwrite)",
            )

    def _open(self, index: int) -> Any:
        chunk = self._chunk(index)
        self._check_size(chunk)
        return open_tensors(self.path / chunk.file)

    def _tensor(
        self, file: Any, chunk: ChunkInfo, name: str, shape: list[int], dtype: str
    ) -> Tensor:
        found, there = "no such tensor", set(file.keys())
        if name in there:
            # The tensor is a view of the mapped file: taking it reads nothing.
            tensor: Tensor = file.get_tensor(name)
            found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            if found == f"{shape} {dtype}":
                return tensor
        raise CorruptFile(
            "A chunk does not hold what the store's description says.",
            where=f"{self.path / chunk.file}: {name}",
            found=found,
            allowed=f"{shape} {dtype}",
            next_step="harvest it again (--overwrite)",
        )
