"""The loops of the sparse step by PyTorch's own operators, where numba is not installed.

The same functions on the same arrays as in `compiled`, which see. `embedding_bag` is a product with
a sparse matrix: a weighted sum of rows, chosen by index, for each bag.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ensemble_sae.kernels.layout import BETA2, DECAY, EPS, KEEP1, KEEP2, ONE, RATE, TWO

ENTRIES = 16_384  # whose dot products are taken at a time: their two rows are in memory


def take(*tensors: Tensor) -> list[Tensor]:
    """The memory of tensors, as the functions here take it: the tensors."""
    return list(tensors)


def use_threads(count: int) -> None:
    """PyTorch has its own number of threads."""


def compact(
    scores: Tensor, columns: Tensor, counts: Tensor, scale: Tensor, bias: Tensor, floor: Tensor
) -> None:
    """As `compiled.compact`."""
    values = scores * scale + bias
    _move(values, ~(values < floor[None, :, None]), scores, columns, counts)


def compact_largest(
    scores: Tensor,
    columns: Tensor,
    counts: Tensor,
    scale: Tensor,
    bias: Tensor,
    floor: Tensor,
    ks: Tensor,
    bits: Tensor,
) -> None:
    """As `compiled.compact_largest`; `bits` is not needed."""
    values, low = scores * scale + bias, floor[None, :, None]
    most = int(ks.max())
    largest = values.topk(most, dim=-1).values
    place = ks[None, :, None].expand(len(values), -1, 1) - 1
    kth = largest.gather(-1, place)
    _move(values, ~((values < low) | (values < kth)), scores, columns, counts)


def keep_at_least(values: Tensor, columns: Tensor, counts: Tensor, floor: Tensor) -> None:
    """As `compiled.keep_at_least`."""
    there = torch.arange(values.shape[-1]) < counts[..., None]
    keep = there & ~(values < floor[None, :, None])
    _move(values.clone(), keep, values, columns, counts, columns.clone())


def nth_smallest(scores: Tensor, counts: Tensor, k: int, place: int, room: Tensor) -> float:
    """As `compiled.nth_smallest`."""
    own = scores[:, k]
    torch.masked_select(own, torch.arange(own.shape[-1]) < counts[:, k, None], out=room)
    return float(room.kthvalue(place + 1).values)


def decode(
    rows: Tensor,
    centre: Tensor,
    decoder: Tensor,
    shrink: Tensor,
    l1: Tensor,
    scores: Tensor,
    columns: Tensor,
    counts: Tensor,
    residual: Tensor,
    slopes: Tensor,
    squares: Tensor,
    sums: Tensor,
) -> None:
    """As `compiled.decode`."""
    batch, d = rows.shape
    for k in range(counts.shape[1]):
        there, column, value = _entries(scores, columns, counts, k)
        atoms, inv, number = decoder[k], shrink[k], counts[:, k]
        starts = number.cumsum(0) - number
        r = residual[k]
        r[:] = embedding_bag(
            column, atoms, starts, mode="sum", per_sample_weights=value * inv[column]
        )
        r += centre[k] - rows
        squares[k] = r.square().sum(1)
        lengths = torch.zeros(batch, dtype=value.dtype)
        row = torch.repeat_interleave(number)
        sums[k] = lengths.index_add_(0, row, value)
        dots = [
            (r[a] * atoms[b]).sum(1)
            for a, b in zip(row.split(ENTRIES), column.split(ENTRIES), strict=True)
        ]
        up = torch.cat(dots) if dots else value
        slopes[:, k][there] = 2 / (batch * d) * up * inv[column] + float(l1[k]) / batch


def by_feature(
    scores: Tensor,
    columns: Tensor,
    counts: Tensor,
    slopes: Tensor,
    first: Tensor,
    sizes: Tensor,
    starts: Tensor,
    at: Tensor,
    codes: Tensor,
    ups: Tensor,
    summed: Tensor,
) -> None:
    """As `compiled.by_feature`; `sizes` is not needed."""
    n = starts.shape[1] - 1
    for k in range(counts.shape[1]):
        there, column, value = _entries(scores, columns, counts, k)
        up, order = slopes[:, k][there], column.argsort(stable=True)
        row = torch.repeat_interleave(counts[:, k])
        part = slice(int(first[k]), int(first[k]) + len(order))
        at[part] = row[order].to(torch.int32)
        codes[part], ups[part] = value[order], up[order]
        ends = torch.bincount(column, minlength=n).cumsum(0) + int(first[k])
        starts[k, 0], starts[k, 1:] = int(first[k]), ends
        feature = column[order]
        summed[k] = torch.zeros(n, dtype=up.dtype).index_add_(0, feature, up[order])


def gradients(
    tied: bool,
    rows: Tensor,
    residual: Tensor,
    centre: Tensor,
    starts: Tensor,
    at: Tensor,
    codes: Tensor,
    ups: Tensor,
    summed: Tensor,
    decoder: Tensor,
    shrink: Tensor,
    d_enc: Tensor,
    d_dec: Tensor,
) -> None:
    """As `compiled.gradients`."""
    for k in range(len(decoder)):
        low, high = int(starts[k, 0]), int(starts[k, -1])
        begin, row = starts[k, :-1] - low, at[low:high].long()
        up, code = ups[low:high], codes[low:high]
        e = embedding_bag(row, rows, begin, mode="sum", per_sample_weights=up)
        e -= summed[k, :, None] * centre[k]
        g = embedding_bag(row, residual[k], begin, mode="sum", per_sample_weights=code)
        g *= 2 / rows.numel()
        if tied:
            g += e
        else:
            d_enc[k] = e
        atoms, inv = decoder[k], shrink[k, :, None]
        along = (g * atoms).sum(1, keepdim=True) * inv.square()
        d_dec[k] = inv * (g - along * atoms)


def descend(
    tied: bool,
    rows: Tensor,
    residual: Tensor,
    centre: Tensor,
    starts: Tensor,
    at: Tensor,
    codes: Tensor,
    ups: Tensor,
    summed: Tensor,
    decoder: Tensor,
    shrink: Tensor,
    scalars: Tensor,
    encoder: Tensor,
    m_enc: Tensor,
    v_enc: Tensor,
    m_dec: Tensor,
    v_dec: Tensor,
) -> None:
    """As `compiled.descend`, with the gradients in memory."""
    d_dec = torch.empty_like(decoder)
    d_enc = d_dec if tied else torch.empty_like(decoder)
    gradients(
        tied, rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink, d_enc, d_dec
    )
    _adam(decoder, m_dec, v_dec, d_dec, scalars)
    if not tied:
        _adam(encoder, m_enc, v_enc, d_enc, scalars)


def _adam(params: Tensor, first: Tensor, second: Tensor, gradient: Tensor, scalars: Tensor) -> None:
    p, m, v, g = (array for array in (params, first, second, gradient))
    s = scalars.T[..., None, None]
    m += s[KEEP1] * (g - m)
    v.mul_(s[BETA2]).add_(s[KEEP2] * g.square())
    p += s[RATE] * (m * s[ONE] / (v.sqrt() * s[TWO] + s[EPS]) + s[DECAY] * p)


def _move(
    values: Tensor,
    keep: Tensor,
    out: Tensor,
    columns: Tensor,
    counts: Tensor,
    known: Tensor | None = None,
) -> None:
    """What is kept goes to the front of its row; `known`: the columns, if not their places."""
    number = keep.sum(-1)
    counts[:] = number
    front = torch.arange(values.shape[-1]) < number[..., None]
    out[front] = values[keep]
    places = keep.nonzero()[:, 2].to(torch.int32) if known is None else known[keep]
    columns[front] = places


def _entries(
    scores: Tensor, columns: Tensor, counts: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where member k's entries are `[B, n]`, their columns and values, row by row."""
    there = torch.arange(scores.shape[-1]) < counts[:, k, None]
    return there, columns[:, k][there].long(), scores[:, k][there]
