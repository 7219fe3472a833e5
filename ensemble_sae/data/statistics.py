"""Mean and variance of rows that stream by, exact enough and exactly resumable."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

_SLAB = 8192  # rows converted to float64 at a time


class RunningStatistics:
    """Per-dimension mean and variance in float64, one chunk after another.

    Two sets of rows are merged by the pairwise rule of Chan, Golub & LeVeque (1983), kept as a
    variance rather than a sum of squares so that what is written to `meta.json` *is* the state:
    a writer that was interrupted goes on to the same bits.

        n = n_a + n_b,  delta = mean_b - mean_a
        mean = mean_a + delta n_b / n
        variance = (n_a variance_a + n_b variance_b + delta^2 n_a n_b / n) / n
    """

    def __init__(self, rows: int, mean: Sequence[float], variance: Sequence[float]) -> None:
        self.rows = rows
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.variance = torch.tensor(variance, dtype=torch.float64)

    @classmethod
    def empty(cls, d: int) -> RunningStatistics:
        """The statistics of no rows: all zero."""
        return cls(0, [0.0] * d, [0.0] * d)

    def copy(self) -> RunningStatistics:
        """The same state, to go on from without changing this one."""
        return RunningStatistics(self.rows, self.mean.tolist(), self.variance.tolist())

    def add(self, rows: Tensor) -> None:
        """Take in `rows` `[N, d]`, of any floating dtype."""
        for slab in torch.split(rows, _SLAB):
            values = slab.double()
            mean = values.mean(0)
            self._merge(len(values), mean, values.sub_(mean).square_().mean(0))

    def _merge(self, rows: int, mean: Tensor, variance: Tensor) -> None:
        total = self.rows + rows
        delta = mean - self.mean
        spread = delta.square() * (self.rows * rows / total)
        self.mean = self.mean + delta * (rows / total)
        self.variance = (self.rows * self.variance + rows * variance + spread) / total
        self.rows = total

    @property
    def scale(self) -> float:
        """`sqrt(E[||x - mean||^2] / d)`, the root mean square of a centred coordinate."""
        return sqrt(self.variance.mean().item())


def finite_rows(rows: Tensor) -> Tensor:
    """Which rows of `[N, d]` hold finite values only, bool `[N]`."""
    # x - x is 0 for finite values and NaN otherwise; a sum of them cannot overflow.
    return (rows - rows).sum(1) == 0
