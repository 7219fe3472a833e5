"""The order of work: rounds, each one chunk of every store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensemble_sae.data.feed import chunk_order


@dataclass(frozen=True)
class Item:
    """One chunk of one store in one epoch."""

    epoch: int
    chunk: int


@dataclass(frozen=True)
class Round:
    """What every worker trains on next: an item per hook (stores that have run out are absent)."""

    number: int
    items: Mapping[str, Item]


def rounds(
    chunks: Mapping[str, list[int]], *, epochs: int, seed: int, as_written: bool = False
) -> list[Round]:
    """All rounds of a sweep.

    Args:
        chunks: hook -> indices of its training chunks.
        as_written: take the first epoch's chunks in the order in which a harvest writes them,
            so that the list for some of the chunks is the beginning of the list for all.
    """
    queues: dict[str, list[Item]] = {}
    for hook, there in chunks.items():
        queues[hook] = []
        for epoch in range(epochs):
            in_order = as_written and epoch == 0
            order = range(len(there)) if in_order else chunk_order(len(there), seed, epoch)
            queues[hook] += [Item(epoch, there[position]) for position in order]
    return [
        Round(
            number, {hook: queue[number] for hook, queue in queues.items() if number < len(queue)}
        )
        for number in range(max(len(queue) for queue in queues.values()))
    ]
