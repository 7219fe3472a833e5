"""The order of work: every chunk once per epoch, every row at most once, the same for all."""

from __future__ import annotations

import random

import pytest
import torch

from ensemble_sae.data.feed import Batches, row_order
from ensemble_sae.data.units import Units
from ensemble_sae.dispatch.schedule import rounds


@pytest.mark.parametrize("seed", range(20))
def test_rounds(seed: int) -> None:
    draw = random.Random(seed)
    epochs = draw.randrange(1, 4)
    chunks = {
        hook: sorted(draw.sample(range(40), draw.randrange(1, 20))) for hook in ("a", "b", "c")
    }
    for as_written in (False, True):
        made = rounds(chunks, epochs=epochs, seed=seed, as_written=as_written)
        assert [round.number for round in made] == list(range(len(made)))
        for hook, there in chunks.items():
            items = [round.items[hook] for round in made if hook in round.items]
            assert len(items) == epochs * len(there)
            for epoch in range(epochs):
                mine = items[epoch * len(there) : (epoch + 1) * len(there)]
                assert {item.epoch for item in mine} == {epoch}
                assert sorted(item.chunk for item in mine) == there
                if as_written and epoch == 0:
                    assert [item.chunk for item in mine] == there


def test_the_order_differs_per_epoch_and_seed() -> None:
    one = rounds({"a": list(range(30))}, epochs=2, seed=0)
    order = [round.items["a"].chunk for round in one]
    assert order[:30] != order[30:]
    assert order != [r.items["a"].chunk for r in rounds({"a": list(range(30))}, epochs=2, seed=1)]


def test_as_written_the_rounds_of_some_chunks_begin_those_of_all() -> None:
    whole = rounds({h: list(range(12)) for h in "ab"}, epochs=3, seed=5, as_written=True)
    for known in range(1, 13):
        some = {h: list(range(known)) for h in "ab"}
        assert rounds(some, epochs=1, seed=5, as_written=True) == whole[:known]


def test_batches_hold_every_row_at_most_once_per_epoch() -> None:
    rows = torch.arange(103, dtype=torch.float32)[:, None]
    orders = [row_order(103, 7, epoch, 4) for epoch in range(3)]
    left_out = []
    for order in orders:
        batches = Batches(rows, order, 20, Units())
        seen = torch.cat([batches[i] for i in range(len(batches))]).flatten().tolist()
        assert len(seen) == len(set(seen)) == 100
        left_out.append(frozenset(range(103)) - {int(x) for x in seen})
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert len(set(left_out)) == 3, "another epoch leaves out other rows"
    assert torch.equal(orders[0], row_order(103, 7, 0, 4)), "a pure function of its name"
