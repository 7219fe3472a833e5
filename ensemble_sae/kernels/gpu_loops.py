"""The programs of the sparse step for a GPU, in Triton; `gpu` launches them.

The arrays are those of `compiled`, all contiguous. A program has one row of a member, or one
feature; what is d wide is held in registers, of the width D, a power of two. Offsets that count
rows of a weight or of the scores have 64 bits.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from ensemble_sae.kernels import layout

# What a program reads from outside itself has to be a constant of Triton's.
RATE, KEEP1 = tl.constexpr(layout.RATE), tl.constexpr(layout.KEEP1)
BETA2, KEEP2 = tl.constexpr(layout.BETA2), tl.constexpr(layout.KEEP2)
ONE, TWO = tl.constexpr(layout.ONE), tl.constexpr(layout.TWO)
EPS, DECAY = tl.constexpr(layout.EPS), tl.constexpr(layout.DECAY)

INTEGERS = {torch.int32: tl.int32, torch.int64: tl.int64}


@triton.jit
def compact(  # type: ignore[no-untyped-def]
    scores, columns, counts, scale, bias, floor, members, n, BLOCK: tl.constexpr
):
    """For each of B K rows: `compiled.compact`, BLOCK scores at a time."""
    i = tl.program_id(0).to(tl.int64)
    k = i % members
    low = tl.load(floor + k)
    found = 0
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < n
        value = _score(scores + i * n, scale + k * n, bias + k * n, j, inside)
        keep = inside & ~(value < low)
        found = _append(scores + i * n, columns + i * n, value, j, keep, found)
    tl.store(counts + i, found)


@triton.jit
def compact_largest(  # type: ignore[no-untyped-def]
    scores, columns, counts, scale, bias, floor, ks, members, n,
    BITS: tl.constexpr, SIGN: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """For each of B K rows, which is in registers as a whole: `compiled.compact_largest`.

    Positive numbers, as `floor` is, are in the order of their bits: the interval of these is halved
    until it is the k-th largest of those that reach `floor`, or their smallest if there are no k.
    NaN is the largest.

    Args:
        BITS, SIGN: the integers of the width of a score, and their largest: all but the sign.
    """
    i = tl.program_id(0).to(tl.int64)
    k = i % members
    j = tl.arange(0, SIZE)
    inside = j < n
    value = _score(scores + i * n, scale + k * n, bias + k * n, j, inside)
    keep = inside & ~(value < tl.load(floor + k))
    bits = tl.where(keep, value.to(BITS, bitcast=True) & SIGN, 0)
    wanted = tl.load(ks + k)
    high = tl.max(bits, 0)
    low = tl.min(tl.where(keep, bits, high), 0)
    while low < high:
        middle = low + (high - low + 1) // 2
        enough = tl.sum((bits >= middle).to(tl.int32), 0) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    keep = keep & (bits >= low)
    found = _append(scores + i * n, columns + i * n, value, j, keep, 0)
    tl.store(counts + i, found)


@triton.jit
def keep_at_least(  # type: ignore[no-untyped-def]
    scores, columns, counts, floor, members, n, BLOCK: tl.constexpr
):
    """For each of B K rows: `compiled.keep_at_least`."""
    i = tl.program_id(0).to(tl.int64)
    low, count = tl.load(floor + i % members), tl.load(counts + i).to(tl.int32)
    z, c = scores + i * n, columns + i * n
    found = 0
    for start in range(0, count, BLOCK):
        j = start + tl.arange(0, BLOCK)
        there = j < count
        value, column = tl.load(z + j, mask=there, other=0.0), tl.load(c + j, mask=there, other=0)
        found = _append(z, c, value, column, there & ~(value < low), found)
    tl.store(counts + i, found)


@triton.jit
def _score(z, scale, bias, j, inside):  # type: ignore[no-untyped-def]
    """z = score * scale + bias."""
    score = tl.load(z + j, mask=inside, other=0.0)
    factor = tl.load(scale + j, mask=inside, other=0.0)
    return score * factor + tl.load(bias + j, mask=inside, other=0.0)


@triton.jit
def _append(z, c, value, column, keep, found):  # type: ignore[no-untyped-def]
    """What is kept goes to z[found], c[found] and after; the new `found`.

    What goes to the front may land on a place of the same block: nobody writes before all have
    read. Later blocks lie behind all that is written here.
    """
    one = keep.to(tl.int32)
    place = found + tl.cumsum(one, 0) - 1
    tl.debug_barrier()
    tl.store(z + place, value, mask=keep)
    tl.store(c + place, column, mask=keep)
    return found + tl.sum(one, 0)


@triton.jit
def decode(  # type: ignore[no-untyped-def]
    rows, centre, decoder, shrink, l1, scores, columns, counts, residual, slopes, squares, sums,
    batch, members, n, d, D: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """For each of K B rows, a member's one after the other: `compiled.decode`."""
    p = tl.program_id(0).to(tl.int64)
    k, b = p // batch, p % batch
    i = b * members + k
    t = tl.arange(0, D)
    inside = t < d
    count = tl.load(counts + i).to(tl.int32)
    r = tl.load(centre + k * d + t, mask=inside, other=0.0)
    r -= tl.load(rows + b * d + t, mask=inside, other=0.0)
    total = tl.zeros((ENTRIES,), r.dtype)
    for start in range(0, count, ENTRIES):
        j = start + tl.arange(0, ENTRIES)
        there = j < count
        inv, atoms = _atoms(columns + i * n + j, there, k * n, decoder, shrink, d, t, inside)
        code = tl.load(scores + i * n + j, mask=there, other=0.0)
        r += tl.sum((code * inv)[:, None] * atoms, 0)
        total += code
    tl.store(residual + p * d + t, r, mask=inside)
    tl.store(squares + p, tl.sum(r * r, 0))
    tl.store(sums + p, tl.sum(total, 0))
    # In the numbers' own precision: a float that is handed to a program has 32 bits.
    size = tl.cast(batch, r.dtype)
    scale, penalty = 2.0 / (size * tl.cast(d, r.dtype)), tl.load(l1 + k).to(r.dtype) / size
    for start in range(0, count, ENTRIES):
        j = start + tl.arange(0, ENTRIES)
        there = j < count
        inv, atoms = _atoms(columns + i * n + j, there, k * n, decoder, shrink, d, t, inside)
        slope = scale * tl.sum(r[None, :] * atoms, 1) * inv + penalty
        tl.store(slopes + i * n + j, slope, mask=there)


@triton.jit
def _atoms(column, there, first, decoder, shrink, d, t, inside):  # type: ignore[no-untyped-def]
    """1 / ||D|| `[ENTRIES]` and D `[ENTRIES, D]` of some columns; zeros where no entry is left."""
    row = first + tl.load(column, mask=there, other=0)
    inv = tl.load(shrink + row, mask=there, other=0.0)
    mask = there[:, None] & inside[None, :]
    return inv, tl.load(decoder + row[:, None] * d + t[None, :], mask=mask, other=0.0)


@triton.jit
def count_columns(  # type: ignore[no-untyped-def]
    columns, counts, sizes, members, n, blocks, per_block, BLOCK: tl.constexpr
):
    """For each of B K rows: add its entries to `sizes [K, blocks of rows, n]`.

    Integers: whoever comes first, the counts are the same.
    """
    i = tl.program_id(0).to(tl.int64)
    b, k = i // members, i % members
    size = sizes + (k * blocks + b // per_block) * n
    count = tl.load(counts + i).to(tl.int32)
    for start in range(0, count, BLOCK):
        j = start + tl.arange(0, BLOCK)
        there = j < count
        column = tl.load(columns + i * n + j, mask=there, other=0)
        tl.atomic_add(size + column, 1, mask=there, sem="relaxed")


@triton.jit
def place_entries(  # type: ignore[no-untyped-def]
    scores, columns, counts, slopes, sizes, at, codes, ups, batch, members, n, blocks, per_block,
    BLOCK: tl.constexpr
):  # fmt: skip
    """For each of K blocks of rows: its entries to their places, row after row.

    `sizes` has the place of the next entry of each feature. A row has a feature once at most, so
    nobody else wants the same place; the next row waits until all of this one are counted.
    """
    p = tl.program_id(0).to(tl.int64)
    k, block = p // blocks, p % blocks
    size = sizes + p * n
    for b in range(block * per_block, tl.minimum((block + 1) * per_block, batch)):
        i = b * members + k
        count = tl.load(counts + i).to(tl.int32)
        for start in range(0, count, BLOCK):
            j = start + tl.arange(0, BLOCK)
            there = j < count
            column = tl.load(columns + i * n + j, mask=there, other=0)
            place = tl.load(size + column, mask=there, other=0)
            tl.store(size + column, place + 1, mask=there)
            tl.store(at + place, b, mask=there)
            tl.store(codes + place, tl.load(scores + i * n + j, mask=there), mask=there)
            tl.store(ups + place, tl.load(slopes + i * n + j, mask=there), mask=there)
        tl.debug_barrier()


@triton.jit
def sum_features(ups, starts, summed, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """For each of K n features: the sum of its dc."""
    p = tl.program_id(0).to(tl.int64)
    low, high = tl.load(starts + p + p // n), tl.load(starts + p + p // n + 1)
    total = tl.zeros((BLOCK,), ups.dtype.element_ty)
    for start in range(low, high, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        total += tl.load(ups + entry, mask=entry < high, other=0.0)
    tl.store(summed + p, tl.sum(total, 0))


@triton.jit
def gradients(  # type: ignore[no-untyped-def]
    rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink, d_enc, d_dec,
    batch, n, d, TIED: tl.constexpr, D: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """For each of K n features: `compiled.gradients`."""
    p = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, D)
    inside = t < d
    e, g = _row(
        p, t, inside, rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink,
        batch, n, d, TIED, D, ENTRIES
    )  # fmt: skip
    tl.store(d_dec + p * d + t, g, mask=inside)
    if not TIED:
        tl.store(d_enc + p * d + t, e, mask=inside)


@triton.jit
def descend(  # type: ignore[no-untyped-def]
    rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink,
    scalars, encoder, m_enc, v_enc, m_dec, v_dec,
    batch, n, d, width, TIED: tl.constexpr, D: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """For each of K n features: `compiled.descend`; `width`: columns of `scalars`."""
    p = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, D)
    inside = t < d
    e, g = _row(
        p, t, inside, rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink,
        batch, n, d, TIED, D, ENTRIES
    )  # fmt: skip
    tl.debug_barrier()  # the row of D has been read by everyone who wants it
    own = scalars + p // n * width
    _adam(decoder, m_dec, v_dec, g, own, p * d + t, inside)
    if not TIED:
        _adam(encoder, m_enc, v_enc, e, own, p * d + t, inside)


@triton.jit
def _row(  # type: ignore[no-untyped-def]
    p, t, inside, rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink,
    batch, n, d, TIED: tl.constexpr, D: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """dE and dD of feature p = k n + j."""
    k = p // n
    e, g = _sums(p, k, t, inside, rows, residual, starts, at, codes, ups, batch, d, D, ENTRIES)
    e -= tl.load(summed + p) * tl.load(centre + k * d + t, mask=inside, other=0.0)
    g *= 2.0 / (tl.cast(batch, g.dtype) * tl.cast(d, g.dtype))
    if TIED:
        g += e
    atom = tl.load(decoder + p * d + t, mask=inside, other=0.0)
    inv = tl.load(shrink + p)
    along = tl.sum(g * atom, 0) * inv * inv
    return e, inv * (g - along * atom)


@triton.jit
def _sums(  # type: ignore[no-untyped-def]
    p, k, t, inside, rows, residual, starts, at, codes, ups, batch, d,
    D: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """sum dc x, sum c r over the entries of feature p = k n + j of member k."""
    low, high = tl.load(starts + p + k), tl.load(starts + p + k + 1)
    e = tl.zeros((D,), rows.dtype.element_ty)
    g = tl.zeros((D,), rows.dtype.element_ty)
    for start in range(low, high, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        there = entry < high
        b = tl.load(at + entry, mask=there, other=0).to(tl.int64)
        up = tl.load(ups + entry, mask=there, other=0.0)
        code = tl.load(codes + entry, mask=there, other=0.0)
        mask = there[:, None] & inside[None, :]
        x = tl.load(rows + b[:, None] * d + t[None, :], mask=mask, other=0.0)
        own = k * batch + b
        r = tl.load(residual + own[:, None] * d + t[None, :], mask=mask, other=0.0)
        e += tl.sum(up[:, None] * x, 0)
        g += tl.sum(code[:, None] * r, 0)
    return e, g


@triton.jit
def _adam(params, first, second, g, scalars, at, inside):  # type: ignore[no-untyped-def]
    """Adam at some places of a member, as `layout` has it."""
    m = tl.load(first + at, mask=inside, other=0.0)
    v = tl.load(second + at, mask=inside, other=0.0)
    p = tl.load(params + at, mask=inside, other=0.0)
    m += tl.load(scalars + KEEP1) * (g - m)
    v = tl.load(scalars + BETA2) * v + tl.load(scalars + KEEP2) * g * g
    root = tl.sqrt(v) * tl.load(scalars + TWO) + tl.load(scalars + EPS)
    move = m * tl.load(scalars + ONE) / root + tl.load(scalars + DECAY) * p
    tl.store(first + at, m, mask=inside)
    tl.store(second + at, v, mask=inside)
    tl.store(params + at, p + tl.load(scalars + RATE) * move, mask=inside)
