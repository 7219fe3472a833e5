"""Which features fire together, and how their strengths go along: of one code or of two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ensemble_sae.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 2**32  # that a Coactivity may keep, unless told otherwise
PAIRS = 2**24  # of entries that are multiplied at a time in a sparse product: some 0.5 GB
DENSE = 200  # a sparse product is made where a dense one has so many times as many terms
ELEMENTS = 2**22  # of a code at a time: 32 MiB of float64
RESULTS = 2**19  # of a block of results: 4 MiB of float64, which stay in a cache
EXACT = {torch.float32: 2**24, torch.float64: 2**53}  # rows that can be counted


class Coactivity:
    """Covariance, correlation and joint firing of all pairs of features, rows coming in batches.

    Of features a_i (n of them) and b_j (m, by default the same n) over N rows; a feature fires
    where its code is not 0, and N_ij rows have both firing.

        covariance           1/N sum (a_i - mean a_i)(b_j - mean b_j), over all rows
        correlation          covariance over the two standard deviations (Pearson's r)
        together             N_ij
        other_given_feature  P(b_j fires | a_i fires) = N_ij / N_i
        covariance_together  1/N_ij sum (a_i - mean_ij a_i)(b_j - mean_ij b_j), over those N_ij rows
                             alone, with the means over them: how the strengths go along when both
                             are there, whatever makes them come together

    All are population moments, as those of `metrics.moments`. Kept are, of each pair, N_ij and the
    sums of a'_i b'_j, a'_i and b'_j over the rows on which both fire, with a' = a less a shift, the
    mean of the feature's first batch in which it fires. All that is read follows from those and
    from each feature's own sums, so that features with large means cost no digits.

    Memory: 4 n m numbers of `dtype`, or 3 n^2 for one code, whose last two sums are each other's
    transpose. Each `[n, m]` result is 8 n m bytes more. Time: sparse products for sparse codes,
    dense ones otherwise (more than about 1 in 14 fire) and on a GPU.

    Args:
        n: features of the first code; m: of the second, None for pairs of one code with itself.
        dtype: of the sums over pairs: float64, or float32 at half the memory, for at most 2**24
            rows and with errors of about 1e-6 of the sums.
        max_bytes: that may be kept.

    Raises:
        UserError: the sums take more than `max_bytes`; another dtype.
    """

    def __init__(
        self,
        n: int,
        m: int | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if dtype not in EXACT:
            raise UserError(
                "Unknown dtype of sums.", found=str(dtype), allowed="torch.float32, torch.float64"
            )
        self._dtype, self._shape, self.of_one = dtype, (n, n if m is None else m), m is None
        _check_memory(self._shape, self._kept, dtype, max_bytes)
        self.rows = 0
        self._sums: list[Tensor] = []
        self._a = _Features(n)
        self._b = self._a if m is None else _Features(m)

    @torch.no_grad()
    def add(self, codes: Tensor, others: Tensor | None = None) -> None:
        """Add rows: codes `[..., n]`, and for pairs of two codes those of the same rows `[..., m]`.

        Raises:
            UserError: other shapes; a second code that is missing or not wanted; values that are
                not finite; more rows than `dtype` can count.
        """
        codes, others = self._checked(codes, others)
        if not self._sums:
            self._start(codes.device)
        size = max(1, ELEMENTS // max(self._shape))
        for start in range(0, len(codes), size):
            part = slice(start, start + size)
            a = self._a.entries(codes[part])
            b = a if others is None else self._b.entries(others[part])
            self._add(a, b)
        self.rows += len(codes)

    @property
    def varies(self) -> Tensor:
        """Whether each feature of the first code is not constant over the rows, bool `[n]`."""
        self._seen()
        return ~self._a.deviation(self.rows).isnan()

    @property
    def fired(self) -> Tensor:
        """Rows on which each feature of the first code fires, int64 `[n]`."""
        return self._a.fired.long()

    @property
    def others_fired(self) -> Tensor:
        """Rows on which each feature of the second code fires, int64 `[m]`."""
        return self._b.fired.long()

    @property
    def together(self) -> Tensor:
        """Rows on which both features fire, int64 `[n, m]`."""
        self._seen()
        return self._sums[0].long()

    @property
    def other_given_feature(self) -> Tensor:
        """P(b_j fires | a_i fires), float64 `[n, m]`: NaN where a_i never does."""
        self._seen()
        return self._sums[0].double() / self._a.fired[:, None]

    @property
    def covariance(self) -> Tensor:
        """Over all rows, float64 `[n, m]`."""
        return self._result(self._covariance)

    @property
    def correlation(self) -> Tensor:
        """Pearson's r over all rows, float64 `[n, m]`: NaN where a feature is constant."""
        return self._result(self._correlation)

    @property
    def covariance_together(self) -> Tensor:
        """Over the rows on which both fire, float64 `[n, m]`: NaN for no row, 0 for one."""
        return self._result(self._covariance_together)

    def strongest(self, k: int = 20, *, min_fired: int = 2) -> pd.DataFrame:
        """The k pairs of features with the largest |correlation|, the largest first.

        Columns: `feature`, `other`, `correlation`, `covariance`, `together`,
        `other_given_feature` and `feature_given_other`. Of one code each pair is there once, with
        `feature` below `other`, and no feature with itself.

        Args:
            min_fired: leave out features that fire on fewer rows. Two that fire on one row, the
                same, have a correlation of 1 that says nothing; raise it with the rows.

        Raises:
            UserError: no rows yet; k is not positive.
        """
        import pandas as pd

        if k < 1:
            raise UserError("There is no such number of pairs.", where="k", found=str(k))
        best = torch.empty(0, dtype=torch.float64)
        pairs = torch.empty(0, 2, dtype=torch.int64)
        rare = self._b.fired < min_fired
        for part in self._parts():
            size = self._correlation(part, slice(None)).abs_()
            size[self._a.fired[part] < min_fired] = math.nan
            size[:, rare] = math.nan
            if self.of_one:  # what is on or below the diagonal
                first = torch.arange(part.start, part.start + len(size), device=size.device)
                below = torch.arange(size.shape[1], device=size.device) <= first[:, None]
                size[below] = math.nan
            least = float(best[-1]) if len(best) == k else -1.0
            at = (size > least).nonzero()  # few, once there are k; and no NaN
            values, order = size[at[:, 0], at[:, 1]].topk(min(k, len(at)))
            at = at[order] + at.new_tensor([part.start, 0])
            best, pairs = torch.cat([best, values.cpu()]), torch.cat([pairs, at.cpu()])
            best, order = best.topk(min(k, len(best)))
            pairs = pairs[order]
        i, j = pairs.to(self._sums[0].device).unbind(1)
        both = self._sums[0][i, j].double()
        columns = {
            "feature": i,
            "other": j,
            "correlation": self._correlation(i, j),
            "covariance": self._covariance(i, j),
            "together": both.long(),
            "other_given_feature": both / self._a.fired[i],
            "feature_given_other": both / self._b.fired[j],
        }
        return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})

    # --- sums

    @property
    def _kept(self) -> int:
        """Numbers of each pair; of one code, b' together is a' together transposed."""
        return 3 if self.of_one else 4

    def _start(self, device: torch.device) -> None:
        new = torch.zeros(self._kept, *self._shape, dtype=self._dtype, device=device)
        self._sums = list(new)
        self._a.to(device)
        self._b.to(device)

    def _add(self, a: _Entries, b: _Entries) -> None:
        """Together, a' b', a' and, of two codes, b': sums over the rows on which both fire."""
        terms = int((a.per_row * b.per_row).sum())
        dense = a.height * self._shape[0] * self._shape[1]
        if a.rows.device.type == "cpu" and terms * DENSE < dense:
            step = max(1, a.height * PAIRS // max(1, terms))
            for start in range(0, a.height, step):
                part = slice(start, start + step)
                _add_sparse(self._sums, a.matrices(part), b.matrices(part))
            return
        (mask, values), (other_mask, others) = a.dense(self._dtype), b.dense(self._dtype)
        products = ((mask, other_mask), (values, others), (values, other_mask), (mask, others))
        for total, (left, right) in zip(self._sums, products, strict=False):
            total.addmm_(left.mT, right)

    # --- what follows from them; i and j are slices, for a block, or indices of pairs

    def _pair_sums(self, i: Any, j: Any) -> list[Tensor]:
        sums = [*self._sums, self._sums[2].mT] if self.of_one else self._sums
        return [total[i, j].to(torch.float64, copy=True) for total in sums]

    def _covariance(self, i: Any, j: Any) -> Tensor:
        """cov(s p + a', t q + b'): p and q tell where a and b fire, s and t are their shifts.

        The four covariances of the parts, none of which loses digits to a shift.
        """
        together, product, first, second = self._pair_sums(i, j)
        a, b = self._a.at(i, block=0), self._b.at(j, block=1)
        rows = self.rows
        product -= a.total * b.total / rows
        first -= a.total * (b.fired / rows)
        second -= (a.fired / rows) * b.total
        together -= a.fired * (b.fired / rows)
        product += first.mul_(b.shift)
        product += second.mul_(a.shift)
        product += together.mul_(a.shift).mul_(b.shift)
        return product.div_(rows)

    def _correlation(self, i: Any, j: Any) -> Tensor:
        a, b = (side.deviation(self.rows) for side in (self._a, self._b))
        scale = a[i, None] * b[None, j] if isinstance(i, slice) else a[i] * b[j]
        return self._covariance(i, j).div_(scale).clamp_(-1, 1)

    def _covariance_together(self, i: Any, j: Any) -> Tensor:
        together, product, first, second = self._pair_sums(i, j)
        return product.div_(together).sub_(first.div_(together) * second.div_(together))

    def _result(self, function: Any) -> Tensor:
        parts = self._parts()
        out = torch.empty(self._shape, dtype=torch.float64, device=self._sums[0].device)
        for part in parts:
            out[part] = function(part, slice(None))
        return out

    def _parts(self) -> Iterator[slice]:
        self._seen()
        size = max(1, RESULTS // self._shape[1])
        return (slice(top, top + size) for top in range(0, self._shape[0], size))

    def _seen(self) -> None:
        if self.rows == 0:
            raise UserError("No rows, no co-activity.", next_step="add codes first")

    def _checked(self, codes: Tensor, others: Tensor | None) -> tuple[Tensor, Tensor | None]:
        n, m = self._shape
        shapes = [tuple(code.shape) for code in (codes, others) if code is not None]
        wanted = [(*shapes[0][:-1], n)] + ([] if self.of_one else [(*shapes[0][:-1], m)])
        if shapes != wanted or not shapes[0]:
            raise UserError(
                "These are not codes of the same rows, as they are counted here.",
                where="add(codes)" if self.of_one else "add(codes, others)",
                found=" and ".join(map(str, shapes)),
                allowed=f"[B, {n}]" if self.of_one else f"[B, {n}] and [B, {m}]",
            )
        codes = codes.reshape(-1, n)
        if self.rows + len(codes) > EXACT[self._dtype]:
            raise UserError(
                "So many rows cannot be counted in this dtype.",
                found=f"{self.rows + len(codes):,} rows in {self._dtype}",
                allowed=f"{EXACT[self._dtype]:,}",
                next_step="Coactivity(..., dtype=torch.float64)",
            )
        others = None if others is None else others.reshape(-1, m)
        if not all(bool(code.isfinite().all()) for code in (codes, others) if code is not None):
            raise UserError("These codes are not finite.", next_step="leave such members out")
        return codes, others


class _Entries(NamedTuple):
    """The entries of a code `[height, width]` that are not 0, less their feature's shift."""

    rows: Tensor
    columns: Tensor
    values: Tensor
    per_row: Tensor
    height: int
    width: int

    def dense(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Where a feature fires, and its values there: `[height, width]` both."""
        mask = torch.zeros(self.height, self.width, dtype=dtype, device=self.rows.device)
        values = torch.zeros_like(mask)
        mask[self.rows, self.columns] = 1
        values[self.rows, self.columns] = self.values.to(dtype)
        return mask, values

    def matrices(self, part: slice) -> tuple[Any, Any]:
        """The same for some rows, as sparse arrays."""
        from scipy.sparse import csr_array

        bounds = torch.cat([self.per_row.new_zeros(1), self.per_row.cumsum(0)])
        kept = bounds[part.start : part.stop + 1]
        inside = slice(int(kept[0]), int(kept[-1]))
        columns, values = self.columns[inside].numpy(), self.values[inside].numpy()
        shape, rows = (len(kept) - 1, self.width), (kept - kept[0]).numpy()
        ones = np.ones_like(values)
        return tuple(csr_array((data, columns, rows), shape=shape) for data in (ones, values))


class _Features:
    """Each feature's own sums, float64 `[n]`: how often it fired, and of a' and a'^2 there."""

    def __init__(self, n: int) -> None:
        zeros = torch.zeros(n, dtype=torch.float64)
        self.fired, self.shift = zeros, zeros.clone()
        self.total, self.square = zeros.clone(), zeros.clone()

    def to(self, device: torch.device) -> None:
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))

    def entries(self, codes: Tensor) -> _Entries:
        """Count rows `[B, n]`, and give what is not 0 of them."""
        rows, columns = codes.nonzero(as_tuple=True)
        values = codes[rows, columns].double()
        fired = torch.bincount(columns, minlength=len(self.fired))
        mean = torch.zeros_like(self.shift).index_add_(0, columns, values) / fired
        self.shift = torch.where((self.fired == 0) & (fired > 0), mean, self.shift)
        values -= self.shift[columns]
        self.fired += fired
        self.total.index_add_(0, columns, values)
        self.square.index_add_(0, columns, values.square())
        per_row = torch.bincount(rows, minlength=len(codes))
        return _Entries(rows, columns, values, per_row, *codes.shape)

    def at(self, index: Any, *, block: int) -> _Own:
        """The sums of some features; of a slice of them as a column (block 0) or a row (1)."""
        sums = _Own(self.fired[index], self.shift[index], self.total[index])
        if isinstance(index, slice):
            sums = _Own(*(values.unsqueeze(1 - block) for values in sums))
        return sums

    def deviation(self, rows: int) -> Tensor:
        """Standard deviation over all rows, NaN where it is 0 but for rounding."""
        share, mean = self.fired / rows, self.total / rows
        variance = self.shift.square() * share * (1 - share) + 2 * self.shift * mean * (1 - share)
        variance += self.square / rows - mean.square()
        least = (1e-14 * self.shift).square()
        return torch.where(variance > least, variance, math.nan).sqrt()


class _Own(NamedTuple):
    fired: Tensor
    shift: Tensor
    total: Tensor


def _add_sparse(sums: list[Tensor], a: tuple[Any, Any], b: tuple[Any, Any]) -> None:
    (mask, values), (other_mask, others) = a, b
    turned, ones = values.T.tocsr(), mask.T.tocsr()
    products = ((ones, other_mask), (turned, others), (turned, other_mask), (ones, others))
    for total, (left, right) in zip(sums, products, strict=False):
        found = left @ right
        rows = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
        total.numpy()[rows, found.indices] += found.data  # each pair is there once


def _check_memory(shape: tuple[int, int], kept: int, dtype: torch.dtype, limit: int) -> None:
    n, m = shape
    needed = kept * n * m * dtype.itemsize
    if n < 1 or m < 1:
        raise UserError("A code has a feature at least.", found=f"{n} and {m}", allowed=">= 1")
    if needed > limit:
        raise UserError(
            "The sums of so many pairs of features take too much memory.",
            where="Coactivity",
            found=f"{n:,} x {m:,} pairs: {needed / 1e9:.1f} GB in {dtype}",
            allowed=f"max_bytes: {limit / 1e9:.1f} GB",
            next_step="dtype=torch.float32, fewer features (codes[:, chosen]), or more max_bytes",
        )
