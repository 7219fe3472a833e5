"""Numbers as the page has them: short, and nothing that JSON does not know."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

DIGITS = 5


def plain(value: Any) -> Any:
    """As JSON has it: numbers with five significant digits, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):  # a NumPy number or array, or a tensor
        return plain(value.tolist())
    if isinstance(value, float):
        return short(value)
    return value


def short(value: float) -> float | int | None:
    """Five significant digits; whole numbers as such."""
    if not math.isfinite(value):
        return None
    if value.is_integer() and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.{DIGITS}g}")


def thinned(length: int, most: int) -> list[int]:
    """At most so many places of a series, evenly spaced, the last one among them."""
    if length <= most:
        return list(range(length))
    return sorted({round(place * (length - 1) / (most - 1)) for place in range(most)})


def columns(rows: Iterable[Mapping[str, Any]], names: Iterable[str]) -> dict[str, list[Any]]:
    """Rows as columns."""
    kept = list(rows)
    return {name: [plain(row.get(name)) for row in kept] for name in names}
