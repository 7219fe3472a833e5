"""Chunks on their way to a device: the next one is fetched while this one is trained on."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ensemble_sae.data.joined import Rows
from ensemble_sae.data.units import AnyUnits
from ensemble_sae.randomness import permutation

PAGE = 4096  # bytes; where pages are larger, they are touched more than once


class Fetched(NamedTuple):
    """A chunk's rows `[N, d]` in the stored dtype, and the event after which they are there."""

    rows: Tensor
    ready: torch.cuda.Event | None


class ChunkFeed:
    """Maps chunks of one store, one ahead of the reader, in a thread of its own.

    On a CPU the mapped file itself is handed out; the thread has read it once, in order, so its
    pages are in the page cache that all workers share; the first time it compares the checksum too.
    On CUDA the thread copies the chunk to pinned memory and from there to the device on a stream
    of its own, while the previous chunk is trained on. Rows joined from several stores are a copy
    on either, which the thread makes.
    """

    def __init__(self, store: Rows, device: torch.device) -> None:
        self.store, self.device = store, device
        self.stall_s = 0.0
        self._verified: set[int] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"feed-{store.path.name}")
        self._coming: dict[int, Future[Fetched]] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prefetch(self, chunk: int) -> None:
        """Begin to fetch a chunk, after those that were asked for before."""
        if chunk not in self._coming:
            self._coming[chunk] = self._pool.submit(self._fetch, chunk)

    def take(self, chunk: int) -> Tensor:
        """The rows of a chunk `[N, d]`, on the device; waits if they are not there yet.

        Raises:
            CorruptFile: the chunk's file is missing, truncated or altered.
        """
        began = time.perf_counter()
        self.prefetch(chunk)
        fetched = self._coming.pop(chunk).result()
        if fetched.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(fetched.ready)
            fetched.rows.record_stream(torch.cuda.current_stream(self.device))
        self.stall_s += time.perf_counter() - began
        return fetched.rows

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, chunk: int) -> Fetched:
        if chunk >= len(self.store.meta.chunks):  # harvested since
            self.store.refresh()
        rows = self.store.activations(chunk, verify=chunk not in self._verified)
        self._verified.add(chunk)
        if self._stream is None:
            _read(rows)
            return Fetched(rows, None)
        with torch.cuda.stream(self._stream):
            on_device = rows.pin_memory().to(self.device, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return Fetched(on_device, ready)


def _read(rows: Tensor) -> None:
    """Touch every page of mapped rows, in order: batches ask for them in random order, which is
    the slowest way to read from a medium.
    """
    rows.view(torch.uint8).flatten()[::PAGE].sum()


class Batches:
    """The batches of one chunk in one epoch's order: the same for every member and every worker.

    Rows that do not fill a last batch are left out of this epoch; another epoch leaves out others.

    Args:
        rows: the chunk `[N, d]`; order: a permutation of its rows; units: what batches are in.
    """

    def __init__(self, rows: Tensor, order: Tensor, batch_size: int, units: AnyUnits) -> None:
        self._rows, self._order = rows, order.to(rows.device)
        self._size, self._units = batch_size, units

    def __len__(self) -> int:
        return self._rows.shape[0] // self._size

    def __getitem__(self, index: int) -> Tensor:
        """Batch `index`, float32 `[batch_size, d]`."""
        chosen = self._order[index * self._size : (index + 1) * self._size]
        return self._units.enter(self._rows.index_select(0, chosen))


def row_order(rows: int, seed: int, epoch: int, chunk: int) -> Tensor:
    """The order of a chunk's rows in an epoch, int64 `[rows]`."""
    return permutation(rows, seed, "rows", epoch, chunk)


def chunk_order(chunks: int, seed: int, epoch: int) -> list[int]:
    """The order of a store's training chunks in an epoch, as positions among them."""
    return permutation(chunks, seed, "chunks", epoch).tolist()
