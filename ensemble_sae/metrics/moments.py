"""Moments of many columns at once, rows coming batch by batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ensemble_sae.errors import UserError

ELEMENTS = 2**20  # numbers at a time: 8 MiB of float64 for each temporary


class _Sums(NamedTuple):
    """Of `total` rows: mean less a shift, and sum (x - mean)^p for p = 2, 3, 4, each `[n]`."""

    total: int
    mean: Tensor
    second: Tensor
    third: Tensor
    fourth: Tensor


class Moments:
    """Mean, variance, skewness and kurtosis of each column, streamed in float64.

    Central sums of parts are combined pairwise: Pebay 2008, "Formulas for Robust, One-Pass Parallel
    Computation of Covariances and Arbitrary-Order Statistical Moments", SAND2008-6212, after Chan,
    Golub & LeVeque 1979. Rows are shifted by the first one seen, so that a large mean costs no
    digits. How the rows are cut into batches matters to rounding only.

    All are population moments, divided by the number of rows. What is kept lies on the device of
    the rows.
    """

    def __init__(self) -> None:
        self._shift: Tensor | None = None
        self._sums: _Sums | None = None

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Add rows `[B, n]`; no rows (B = 0) change nothing.

        Raises:
            UserError: they have not as many columns as those before.
        """
        self._check(rows.shape[1:])
        if rows.shape[0] == 0:
            return
        if self._shift is None:
            self._shift = rows[0].double().clone()
        for part in rows.split(max(1, ELEMENTS // max(1, rows.shape[1]))):
            sums = _of(part.double() - self._shift)
            self._sums = sums if self._sums is None else _combined(self._sums, sums)

    @torch.no_grad()
    def merge(self, other: Moments) -> None:
        """Add the rows that another has seen; the other stays as it is.

        Raises:
            UserError: the other has not as many columns.
        """
        if other._sums is None or other._shift is None:
            return
        self._check(other._shift.shape)
        if self._sums is None or self._shift is None:
            self._shift, self._sums = other._shift, other._sums
            return
        shift, theirs = other._shift.to(self._shift.device), other._sums
        theirs = theirs._replace(mean=theirs.mean + (shift - self._shift))
        self._sums = _combined(self._sums, theirs)

    @property
    def rows(self) -> int:
        """Rows added so far."""
        return 0 if self._sums is None else self._sums.total

    @property
    def mean(self) -> Tensor:
        """sum x / N, `[n]`; like all that follow a UserError before there are rows."""
        shift, sums = self._seen()
        return shift + sums.mean

    @property
    def variance(self) -> Tensor:
        """sum (x - mean)^2 / N, `[n]`."""
        _, sums = self._seen()
        return sums.second / sums.total

    @property
    def skewness(self) -> Tensor:
        """mean of (x - mean)^3 over variance^1.5, `[n]`: 0 if symmetric, NaN if constant."""
        _, sums = self._seen()
        return sums.total**0.5 * sums.third / sums.second**1.5

    @property
    def kurtosis(self) -> Tensor:
        """mean of (x - mean)^4 over variance^2, `[n]`: 3 for a Gaussian, NaN if constant.

        Not in excess of 3. At least 1 + skewness^2; the higher, the more a column owes to few rows.
        """
        _, sums = self._seen()
        return sums.total * sums.fourth / sums.second.square()

    def _seen(self) -> tuple[Tensor, _Sums]:
        if self._shift is None or self._sums is None:
            raise UserError("There are no moments of no rows.", next_step="add rows first")
        return self._shift, self._sums

    def _check(self, columns: torch.Size) -> None:
        if len(columns) != 1 or (self._shift is not None and columns != self._shift.shape):
            raise UserError(
                "Moments are of rows with the same columns.",
                where="rows of Moments",
                found=f"columns {tuple(columns)}",
                allowed="[B, n]" if self._shift is None else f"[B, {self._shift.shape[0]}]",
            )


def _of(rows: Tensor) -> _Sums:
    mean = rows.mean(0)
    around = rows - mean
    square = around.square()
    third = (square * around).sum(0)
    return _Sums(rows.shape[0], mean, square.sum(0), third, square.square().sum(0))


def _combined(a: _Sums, b: _Sums) -> _Sums:
    """The sums of two parts together. Factors are shares of rows, so that none is large."""
    n = a.total + b.total
    p, q = a.total / n, b.total / n
    gap = b.mean - a.mean
    square = gap.square()
    weight = p * b.total  # n_a n_b / n
    second = a.second + b.second + weight * square
    third = a.third + b.third + weight * (p - q) * gap * square
    third += 3 * gap * (p * b.second - q * a.second)
    fourth = a.fourth + b.fourth + weight * (p * p - p * q + q * q) * square.square()
    fourth += 6 * square * (p * p * b.second + q * q * a.second)
    fourth += 4 * gap * (p * b.third - q * a.third)
    return _Sums(n, a.mean + q * gap, second, third, fourth)
