"""Which line of an answer belongs to which token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def align(expected: Sequence[str], told: Sequence[str]) -> list[int | None]:
    """The place in `told` of every one of `expected`, by the smallest edit distance.

    A line that is left out, added or altered costs 1 (Levenshtein); an altered one keeps its place.

    Returns:
        As many as expected, ascending; None where a line is missing.
    """
    low = _same_at_start(expected, told)
    high = _same_at_start(expected[low:][::-1], told[low:][::-1])
    middle = _align(expected[low : len(expected) - high], told[low : len(told) - high])
    return [
        *range(low),
        *(None if place is None else place + low for place in middle),
        *range(len(told) - high, len(told)),
    ]


def _same_at_start(a: Sequence[str], b: Sequence[str]) -> int:
    n = min(len(a), len(b))
    return next((place for place in range(n) if a[place] != b[place]), n)


def _align(a: Sequence[str], b: Sequence[str]) -> list[int | None]:
    """Wagner and Fischer 1974: a table of distances, walked back from its end."""
    if not a or not b:
        return [None] * len(a)
    cost = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int64)
    cost[0] = steps = np.arange(len(b) + 1)
    letters = np.array(b)
    for i, word in enumerate(a, 1):
        best = np.concatenate(
            [[i], np.minimum(cost[i - 1, :-1] + (letters != word), cost[i - 1, 1:] + 1)]
        )
        # The cheapest of what came before in the row, and one for each line that is added.
        cost[i] = np.minimum.accumulate(best - steps) + steps
    places: list[int | None] = [None] * len(a)
    i, j = len(a), len(b)
    while i and j:
        if cost[i, j] == cost[i - 1, j - 1] + (a[i - 1] != b[j - 1]):
            i, j = i - 1, j - 1
            places[i] = j
        elif cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return places
