"""A sample of a store's rows: of the first training chunk, each once, always the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ensemble_sae.data.sample import sample_rows
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError


class Chunks:
    """A store in memory: chunk 0 is held out, the others are for training."""

    def __init__(self, *rows: Tensor) -> None:
        self._rows = rows

    def chunks(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(index=i + 1) for i in range(len(self._rows))]

    def activations(self, index: int) -> Tensor:
        return self._rows[index - 1]


def numbered(first: int, count: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.stack([torch.arange(first, first + count), torch.ones(count)], 1).to(dtype)


def test_rows_of_the_first_chunk_each_once() -> None:
    store = Chunks(numbered(0, 100), numbered(500, 100))
    found = sample_rows(store, 40, seed=0)
    assert (found.dtype, found.shape) == (torch.float32, (40, 2))
    there = found[:, 0].tolist()
    assert len(set(there)) == 40
    assert set(there) <= set(range(100))
    assert there != sorted(there)
    assert torch.equal(found[:, 1], torch.ones(40))
    whole = sample_rows(store, 1000, seed=0)
    assert sorted(whole[:, 0].tolist()) == list(range(100))


def test_always_the_same() -> None:
    store = Chunks(numbered(0, 100))
    found = sample_rows(store, 30, seed=3)
    torch.manual_seed(99)
    later = Chunks(numbered(0, 100), numbered(500, 100))  # another chunk has been harvested since
    assert torch.equal(sample_rows(later, 30, seed=3), found)
    assert torch.equal(sample_rows(store, 10, seed=3), found[:10])
    assert not torch.equal(sample_rows(store, 30, seed=4), found)


def test_every_row_is_as_likely() -> None:
    store = Chunks(numbered(0, 10))
    drawn = torch.cat([sample_rows(store, 3, seed=s)[:, 0] for s in range(1000)])
    times = torch.bincount(drawn.long(), minlength=10)
    assert times.sum() == 3000
    assert (times - 300).abs().max() < 5 * (1000 * 0.3 * 0.7) ** 0.5


def test_a_store_on_disk(tmp_path: Path) -> None:
    rows = numbered(0, 100)
    store = ChunkStore.write(tmp_path / "s", rows, chunk_rows=30, held_out=0.1)
    first = store.activations(store.chunks()[0].index)[:, 0].tolist()
    assert set(sample_rows(store, 20, seed=0)[:, 0].tolist()) < set(first)


def test_no_chunk_yet() -> None:
    with pytest.raises(UserError, match="no rows to sample") as caught:
        sample_rows(Chunks(), 10, seed=0)
    assert caught.value.found == "no training chunk"
