"""How well and how sparsely rows are reconstructed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOWEST_DECADE = -7  # rarer features than 1e-7 are counted in the first bin
BINS_PER_DECADE = 4


class Variance:
    """sum over rows and dimensions of (x - mean(x))^2, streamed in float64.

    Rows are shifted by the first row seen, so that a large mean costs no digits.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._shift: Tensor | None = None
        self._sum: Tensor | None = None
        self._square = 0.0

    def add(self, rows: Tensor) -> None:
        """Add rows `[B, d]`."""
        rows = rows.double()
        if self._shift is None or self._sum is None:
            self._shift = rows[0].clone()
            self._sum = torch.zeros_like(self._shift)
        shifted = rows - self._shift
        self.rows += rows.shape[0]
        self._sum += shifted.sum(0)
        self._square += float(shifted.square().sum())

    @property
    def total(self) -> float:
        """The sum of squares around the mean of all rows added."""
        if self._sum is None:
            return 0.0
        return self._square - float(self._sum.square().sum()) / self.rows


def fvu(squared_error: Tensor, total_variance: float) -> Tensor:
    """Fraction of variance unexplained: sum (x - x^)^2 / sum (x - mean(x))^2, over held-out rows.

    0 is perfect; 1 is what the mean row reaches; NaN where the rows do not vary.

    Args:
        squared_error: sum over rows and dimensions, per member `[K]`.
    """
    return squared_error / total_variance if total_variance > 0 else squared_error * torch.nan


def density_histogram(firing: Tensor, rows: int) -> Tensor:
    """Features by log10 of the share of rows they fire on: `[K, n]` counts -> `[K, bins + 1]`.

    Column 0 holds the dead features (no row at all); then `BINS_PER_DECADE` bins per decade from
    `10**LOWEST_DECADE` to 1.
    """
    bins = -LOWEST_DECADE * BINS_PER_DECADE
    exponent = torch.log10(firing.double() / rows)
    index = torch.floor((exponent - LOWEST_DECADE) * BINS_PER_DECADE).clamp(0, bins - 1) + 1
    index = torch.where(firing > 0, index, 0.0).long()
    histogram = torch.zeros(firing.shape[0], bins + 1, dtype=torch.int64, device=firing.device)
    return histogram.scatter_add_(1, index, torch.ones_like(index))


def pareto(fvu: list[float], l0: list[float]) -> list[bool]:
    """Which members no other beats: none is as good in FVU and in L0, and better in one.

    Of equals the first is chosen. NaN is never on the frontier.
    """
    numbers = [i for i in range(len(fvu)) if not (math.isnan(fvu[i]) or math.isnan(l0[i]))]
    best, chosen = float("inf"), [False] * len(fvu)
    for i in sorted(numbers, key=lambda i: (l0[i], fvu[i])):
        if fvu[i] < best:
            best, chosen[i] = fvu[i], True
    return chosen
