"""Stores of one harvest read as one, and units by part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from making import rows

from ensemble_sae.data.feed import Batches, ChunkFeed
from ensemble_sae.data.joined import JoinedStore, join, open_rows
from ensemble_sae.data.meta import DTYPES, read_meta, write_meta
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import JoinedUnits, Units, join_units
from ensemble_sae.data.writer import StoreWriter
from ensemble_sae.errors import CorruptFile, UserError

SIDES = [False, True, False, False]


def write(
    path: Path,
    d: int,
    *,
    chunks: int = 4,
    count: int = 20,
    dtype: str = "float32",
    sides: list[bool] = SIDES,
    complete: bool = True,
    tokens: int = 0,
    **source: Any,
) -> ChunkStore:
    """A store of a harvest: chunk c has count + c rows. Goes on where it was left."""
    source = {"model": "m", "hook": path.name, "seed": 3, **source}
    with StoreWriter(path, d_activation=d, dtype=dtype, source=source) as writer:  # type: ignore[arg-type]
        for c in range(len(writer.chunks), chunks):
            values = rows(count + c, d, seed=c).to(DTYPES[dtype])
            column = torch.arange(tokens, tokens + count + c, dtype=torch.int32)
            columns = {name: column.clone() for name in ("tokens", "positions", "documents")}
            writer.append({"activations": values, **columns}, held_out=sides[c])
    if not complete:
        write_meta(path, read_meta(path).model_copy(update={"complete": False}))
    return ChunkStore.open(path)


def test_rows_side_by_side(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4), write(tmp_path / "b", 3)
    joined = open_rows([b.path, a.path, b.path])
    assert isinstance(joined, JoinedStore)
    assert (joined.d_activation, joined.widths) == (10, (3, 4, 3))
    assert [c.index for c in joined.chunks()] == [0, 2, 3]
    assert [c.index for c in joined.chunks(held_out=True)] == [1]
    assert (joined.rows(), joined.rows(held_out=True)) == (65, 21)
    assert joined.path == tmp_path / "b + a + b"
    assert joined.meta.complete
    for index, chunk in enumerate(joined.meta.chunks):
        parts = [store.activations(index) for store in (b, a, b)]
        assert torch.equal(joined.activations(index, verify=True), torch.cat(parts, 1))
        assert chunk.bytes == sum(s.meta.chunks[index].bytes for s in (b, a, b))
    assert torch.equal(joined.variance, torch.cat([b.variance, a.variance, b.variance]))
    assert torch.equal(joined.mean, torch.cat([b.mean, a.mean, b.mean]))
    everything = torch.cat([joined.activations(c.index) for c in joined.chunks()]).double()
    assert joined.meta.scale == pytest.approx(float(everything.var(0, correction=0).mean()) ** 0.5)


def test_a_single_store_stays_itself(tmp_path: Path) -> None:
    store = write(tmp_path / "a", 4)
    assert join([store]) is store
    assert isinstance(open_rows([store.path]), ChunkStore)


def test_dtypes_are_joined_in_the_one_that_holds_both(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4, dtype="float16"), write(tmp_path / "b", 3, dtype="bfloat16")
    joined = JoinedStore([a, b])
    assert joined.meta.dtype == "float32"
    assert joined.activations(0).dtype == torch.float32
    assert torch.equal(joined.activations(0)[:, 4:], b.activations(0).float())


def test_while_the_harvest_goes_on(tmp_path: Path) -> None:
    """One store is a chunk ahead: the chunks are those that all have, until the next refresh."""
    write(tmp_path / "a", 4, chunks=3, complete=False)
    write(tmp_path / "b", 3, chunks=2, complete=False)
    joined = open_rows([tmp_path / "a", tmp_path / "b"])
    assert len(joined.meta.chunks) == 2
    assert not joined.meta.complete
    with pytest.raises(UserError, match="no such chunk"):
        joined.activations(2)
    write(tmp_path / "b", 3, chunks=3, complete=False)
    assert len(joined.refresh().meta.chunks) == 3
    write(tmp_path / "b", 3)  # now b is ahead, and complete
    assert len(joined.refresh().meta.chunks) == 3
    assert not joined.meta.complete
    write(tmp_path / "a", 4)
    assert len(joined.refresh().meta.chunks) == 4
    assert joined.meta.complete


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, ["source.seed", "3 and 4"]),
        ({"model": "other"}, ["source.model", "'m' and 'other'"]),
        ({"weights": "abc"}, ["source.weights", "None and 'abc'"]),
        ({"count": 21}, ["chunk 0", "20 training rows and 21 training rows"]),
        ({"sides": [False, False, True, False]}, ["chunk 1", "held-out rows and 21 training"]),
        ({"chunks": 3}, ["the number of chunks", "4 and 3"]),
    ],
)
def test_stores_that_are_not_of_one_harvest(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    write(tmp_path / "a", 4)
    write(tmp_path / "c", 2)
    write(tmp_path / "b", 3, **changes)
    with pytest.raises(UserError) as error:
        open_rows([tmp_path / "a", tmp_path / "c", tmp_path / "b"])
    message = str(error.value)
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "harvest the hook points together", *words]
    assert [word for word in words if word not in message] == []


def test_a_longer_store_cannot_be_caught_up_with(tmp_path: Path) -> None:
    write(tmp_path / "a", 4, chunks=3)
    write(tmp_path / "b", 3, chunks=4, complete=False)
    with pytest.raises(UserError, match="the number of chunks"):
        open_rows([tmp_path / "a", tmp_path / "b"])


def test_other_tokens_are_noticed_when_a_chunk_is_verified(tmp_path: Path) -> None:
    """As a pass of the model that left out other rows would give them."""
    joined = JoinedStore([write(tmp_path / "a", 4), write(tmp_path / "b", 3, tokens=7)])
    joined.activations(0)
    with pytest.raises(UserError, match=r"chunk 0: \w+, row 0\n.*7 and 0"):
        joined.activations(0, verify=True)


def test_damage_is_found_in_every_part(tmp_path: Path) -> None:
    stores = [write(tmp_path / "a", 4), write(tmp_path / "b", 3)]
    joined = JoinedStore(stores)
    file = tmp_path / "b" / stores[1].meta.chunks[2].file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptFile, match=f"b/{file.name}"):
        joined.activations(2, verify=True)


def test_units_are_of_each_part() -> None:
    a, b = Units(2.0, (1.0, -1.0)), Units(0.5)
    units = join_units([a, b, a], [2, 3, 2])
    x = rows(5, 7)
    expected = torch.cat([a.enter(x[:, :2]), b.enter(x[:, 2:5]), a.enter(x[:, 5:])], 1)
    assert torch.equal(units.enter(x), expected)
    torch.testing.assert_close(units.leave(units.enter(x)), x)
    assert units.enter(x.half().reshape(5, 1, 7)).dtype == torch.float32
    assert units.enter(x.reshape(1, 5, 7)).shape == (1, 5, 7)
    assert units == JoinedUnits((a, b, a), (2, 3, 2))
    assert join_units([a], [2]) is a


def test_a_feed_of_joined_rows(tmp_path: Path) -> None:
    joined = JoinedStore([write(tmp_path / "a", 4), write(tmp_path / "b", 3)])
    feed = ChunkFeed(joined, torch.device("cpu"))
    feed.prefetch(2)
    found = feed.take(2)
    assert torch.equal(found, joined.activations(2))
    units = join_units([Units(2.0), Units(4.0)], joined.widths)
    batch = Batches(found, torch.arange(22), 8, units)[1]
    assert torch.equal(batch, found[8:16] / torch.tensor([2.0] * 4 + [4.0] * 3))
    feed.close()
