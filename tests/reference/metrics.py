"""The metrics of a reconstruction."""

from __future__ import annotations

import numpy as np


def fvu(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sum((x - y) ** 2) / np.sum((x - x.mean(0)) ** 2))


def l0(code: np.ndarray) -> float:
    return float(np.mean([np.count_nonzero(row) for row in code]))


def dead(code: np.ndarray) -> float:
    """Share of features that fire on no row."""
    return float(np.mean([not feature.any() for feature in code.T]))


def strength(code: np.ndarray) -> np.ndarray:
    """Mean |activation| of each feature over the rows on which it is active, else 0."""
    return np.array([np.abs(f[f != 0]).mean() if f.any() else 0.0 for f in code.T])


def pareto(fvu: list[float], l0: list[float]) -> list[bool]:
    """Not chosen: what another point is as good as in both and better in one; later twins; NaN."""

    def beats(j: int, i: int) -> bool:
        as_good = fvu[j] <= fvu[i] and l0[j] <= l0[i]
        return as_good and (fvu[j] < fvu[i] or l0[j] < l0[i] or j < i)

    points = range(len(fvu))
    return [
        not np.isnan(fvu[i] + l0[i]) and not any(beats(j, i) for j in points if j != i)
        for i in points
    ]
