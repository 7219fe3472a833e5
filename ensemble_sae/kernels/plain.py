"""The loops of the sparse step by PyTorch's own operators, where numba is not installed.

The same functions on the same arrays as in `compiled`, which see. `embedding_bag` is a product with
a sparse matrix: a weighted sum of rows, chosen by index, for each bag.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ensemble_sae.kernels.layout import BETA2, DECAY, EPS, KEEP1, KEEP2, ONE, RATE, TWO

Array = np.ndarray[Any, Any]
ENTRIES = 16_384  # whose dot products are taken at a time: their two rows are in memory


def use_threads(count: int) -> None:
    """PyTorch has its own number of threads."""


def compact(
    scores: Array, columns: Array, counts: Array, scale: Array, bias: Array, floor: Array
) -> None:
    """As `compiled.compact`."""
    values, low = _scored(scores, scale, bias), _tensor(floor)[None, :, None]
    _move(values, ~(values < low), scores, columns, counts)


def compact_largest(
    scores: Array,
    columns: Array,
    counts: Array,
    scale: Array,
    bias: Array,
    floor: Array,
    ks: Array,
    bits: Array,
) -> None:
    """As `compiled.compact_largest`; `bits` is not needed."""
    values, low = _scored(scores, scale, bias), _tensor(floor)[None, :, None]
    most = int(ks.max())
    largest = values.topk(most, dim=-1).values
    place = _tensor(ks)[None, :, None].expand(len(values), -1, 1) - 1
    kth = largest.gather(-1, place)
    _move(values, ~((values < low) | (values < kth)), scores, columns, counts)


def keep_at_least(values: Array, columns: Array, counts: Array, floor: Array) -> None:
    """As `compiled.keep_at_least`."""
    found, low = _tensor(values), _tensor(floor)[None, :, None]
    there = torch.arange(found.shape[-1]) < _tensor(counts)[..., None]
    _move(found.clone(), there & ~(found < low), values, columns, counts, _tensor(columns).clone())


def gather(scores: Array, counts: Array, k: int, out: Array) -> None:
    """As `compiled.gather`."""
    own = _tensor(scores)[:, k]
    _tensor(out)[:] = own[torch.arange(own.shape[-1]) < _tensor(counts)[:, k, None]]


def decode(
    rows: Array,
    centre: Array,
    decoder: Array,
    shrink: Array,
    l1: Array,
    scores: Array,
    columns: Array,
    counts: Array,
    residual: Array,
    slopes: Array,
    squares: Array,
    sums: Array,
) -> None:
    """As `compiled.decode`."""
    x, r = _tensor(rows), _tensor(residual)
    batch, d = x.shape
    for k in range(counts.shape[1]):
        there, column, value = _entries(scores, columns, counts, k)
        atoms, inv, number = _tensor(decoder)[k], _tensor(shrink)[k], _tensor(counts)[:, k]
        starts = number.cumsum(0) - number
        r[k] = embedding_bag(
            column, atoms, starts, mode="sum", per_sample_weights=value * inv[column]
        )
        r[k] += _tensor(centre)[k] - x
        _tensor(squares)[k] = r[k].square().sum(1)
        lengths = torch.zeros(batch, dtype=value.dtype)
        row = torch.repeat_interleave(number)
        _tensor(sums)[k] = lengths.index_add_(0, row, value)
        dots = [
            (r[k][a] * atoms[b]).sum(1)
            for a, b in zip(row.split(ENTRIES), column.split(ENTRIES), strict=True)
        ]
        up = torch.cat(dots) if dots else value
        _tensor(slopes)[:, k][there] = 2 / (batch * d) * up * inv[column] + float(l1[k]) / batch


def by_feature(
    scores: Array,
    columns: Array,
    counts: Array,
    slopes: Array,
    first: Array,
    sizes: Array,
    starts: Array,
    at: Array,
    codes: Array,
    ups: Array,
    summed: Array,
) -> None:
    """As `compiled.by_feature`; `sizes` is not needed."""
    n = starts.shape[1] - 1
    for k in range(counts.shape[1]):
        there, column, value = _entries(scores, columns, counts, k)
        up, order = _tensor(slopes)[:, k][there], column.argsort(stable=True)
        row = torch.repeat_interleave(_tensor(counts)[:, k])
        part = slice(int(first[k]), int(first[k]) + len(order))
        _tensor(at)[part] = row[order].to(torch.int32)
        _tensor(codes)[part], _tensor(ups)[part] = value[order], up[order]
        ends = torch.bincount(column, minlength=n).cumsum(0) + int(first[k])
        _tensor(starts)[k, 0], _tensor(starts)[k, 1:] = int(first[k]), ends
        feature = column[order]
        _tensor(summed)[k] = torch.zeros(n, dtype=up.dtype).index_add_(0, feature, up[order])


def gradients(
    tied: bool,
    rows: Array,
    residual: Array,
    centre: Array,
    starts: Array,
    at: Array,
    codes: Array,
    ups: Array,
    summed: Array,
    decoder: Array,
    shrink: Array,
    d_enc: Array,
    d_dec: Array,
) -> None:
    """As `compiled.gradients`."""
    for k in range(len(decoder)):
        low, high = int(starts[k, 0]), int(starts[k, -1])
        begin, row = _tensor(starts)[k, :-1] - low, _tensor(at)[low:high].long()
        up, code = _tensor(ups)[low:high], _tensor(codes)[low:high]
        e = embedding_bag(row, _tensor(rows), begin, mode="sum", per_sample_weights=up)
        e -= _tensor(summed)[k, :, None] * _tensor(centre)[k]
        g = embedding_bag(row, _tensor(residual)[k], begin, mode="sum", per_sample_weights=code)
        g *= 2 / rows.size
        if tied:
            g += e
        else:
            _tensor(d_enc)[k] = e
        atoms, inv = _tensor(decoder)[k], _tensor(shrink)[k, :, None]
        along = (g * atoms).sum(1, keepdim=True) * inv.square()
        _tensor(d_dec)[k] = inv * (g - along * atoms)


def descend(
    tied: bool,
    rows: Array,
    residual: Array,
    centre: Array,
    starts: Array,
    at: Array,
    codes: Array,
    ups: Array,
    summed: Array,
    decoder: Array,
    shrink: Array,
    scalars: Array,
    encoder: Array,
    m_enc: Array,
    v_enc: Array,
    m_dec: Array,
    v_dec: Array,
) -> None:
    """As `compiled.descend`, with the gradients in memory."""
    d_dec = np.empty_like(decoder)
    d_enc = d_dec if tied else np.empty_like(decoder)
    gradients(
        tied, rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink, d_enc, d_dec
    )
    _adam(decoder, m_dec, v_dec, d_dec, scalars)
    if not tied:
        _adam(encoder, m_enc, v_enc, d_enc, scalars)


def _adam(params: Array, first: Array, second: Array, gradient: Array, scalars: Array) -> None:
    p, m, v, g = (_tensor(array) for array in (params, first, second, gradient))
    s = _tensor(scalars).T[..., None, None]
    m += s[KEEP1] * (g - m)
    v.mul_(s[BETA2]).add_(s[KEEP2] * g.square())
    p += s[RATE] * (m * s[ONE] / (v.sqrt() * s[TWO] + s[EPS]) + s[DECAY] * p)


def _scored(scores: Array, scale: Array, bias: Array) -> Tensor:
    return _tensor(scores) * _tensor(scale) + _tensor(bias)


def _move(
    values: Tensor,
    keep: Tensor,
    out: Array,
    columns: Array,
    counts: Array,
    known: Tensor | None = None,
) -> None:
    """What is kept goes to the front of its row; `known`: the columns, if not their places."""
    number = keep.sum(-1)
    _tensor(counts)[:] = number
    front = torch.arange(values.shape[-1]) < number[..., None]
    _tensor(out)[front] = values[keep]
    places = keep.nonzero()[:, 2].to(torch.int32) if known is None else known[keep]
    _tensor(columns)[front] = places


def _entries(scores: Array, columns: Array, counts: Array, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where member k's entries are `[B, n]`, their columns and values, row by row."""
    there = torch.arange(scores.shape[-1]) < _tensor(counts)[:, k, None]
    return there, _tensor(columns)[:, k][there].long(), _tensor(scores)[:, k][there]


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array)
