"""Axes and their product: `l1 = {logspace = [-4, -2, 9]}` -> nine numbers -> combinations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ensemble_sae.errors import UserError

SPACES = {
    "logspace": lambda a, b, n: np.logspace(a, b, n),
    "linspace": lambda a, b, n: np.linspace(a, b, n),
}
MOST = 100_000  # members of one grid, and values of one axis
AXIS_WORDS = (
    "a value, a list of them, {logspace = [first exponent, last exponent, count]}, "
    f"or {{linspace = [first, last, count]}}; count from 1 to {MOST:,}; "
    'an init may be {kind = "centroid", rare = 0.05}'
)


def axis_values(axis: Any, where: str) -> list[Any]:
    """The values of one axis, in order.

    Raises:
        UserError: an empty list, an unknown kind of space, or a count below 1.
    """
    if isinstance(axis, list):
        if not axis:
            raise UserError("An axis without values.", where=where, allowed=AXIS_WORDS)
        return [v for part in axis for v in (_spaced(part, where) if _is_space(part) else [part])]
    if _is_space(axis):
        return _spaced(axis, where)
    return [axis]


def combinations(grid: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Every combination of a grid's axes; the last axis moves fastest."""
    values = [axis_values(axis, f"{where}.{name}") for name, axis in grid.items()]
    if (count := math.prod(map(len, values))) > MOST:
        raise UserError(
            "A grid of too many members.", where=where, found=f"{count:,}", allowed=f"{MOST:,}"
        )
    for chosen in itertools.product(*values):
        yield dict(zip(grid, chosen, strict=True))


def _is_space(axis: Any) -> bool:
    """A table that is no value itself, as `{kind = "centroid"}` is."""
    return isinstance(axis, dict) and "kind" not in axis


def _spaced(axis: dict[str, Any], where: str) -> list[float]:
    problem = UserError(
        "An axis is not understood.", where=where, found=repr(axis), allowed=AXIS_WORDS
    )
    if len(axis) != 1 or next(iter(axis)) not in SPACES:
        raise problem
    kind, bounds = next(iter(axis.items()))
    if not isinstance(bounds, list) or [type(x) in (int, float) for x in bounds] != [True] * 3:
        raise problem
    first, last, count = bounds
    if not isinstance(count, int) or not 1 <= count <= MOST:
        raise problem
    try:
        first, last = float(first), float(last)
    except OverflowError:
        raise problem from None
    # Twelve digits hide the last bit of 10 ** x, so that 1e-3 is 0.001 in every table.
    with np.errstate(all="ignore"):  # what is not finite is refused by its member
        return [float(f"{value:.12g}") for value in SPACES[kind](first, last, count)]
