"""The loops of the sparse step, compiled by numba.

Arrays of K members side by side: `scores`, `columns`, `slopes` [B, K, n], of which only the first
`counts[b, k]` entries of a row mean anything: a product of the batch with the members' encoders is
in this order. `residual` [K, B, d]; weights [K, n, d].

By feature, the entries of all members are in one list each (`at` the row, `codes`, `ups` = dc),
those of feature j of member k from `starts[k, j]` to `starts[k, j + 1]`, in the order of the rows.
Every sum is taken in one fixed order: nothing depends on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit, prange
from torch import Tensor

from ensemble_sae.kernels.layout import BETA2, DECAY, EPS, KEEP1, KEEP2, ONE, RATE, TWO

# What may be reordered; NaN and infinity keep their meaning: a member is frozen by them.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_parallel: Any = njit(parallel=True, cache=True, fastmath=_FAST, error_model="numpy")
_inlined: Any = njit(inline="always")
_inner: Any = njit(cache=True, fastmath=_FAST, error_model="numpy")

FEATURES = 16  # that one thread takes at a time
BLOCK = 8  # scores that are looked at together


def take(*tensors: Tensor) -> list[np.ndarray[Any, Any]]:
    """The memory of tensors, as numba takes it."""
    return [tensor.numpy() for tensor in tensors]


def use_threads(count: int) -> None:
    """Threads of the calls that follow, as far as there are so many."""
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(count, most))


@_parallel
def compact(scores, columns, counts, scale, bias, floor):  # type: ignore[no-untyped-def]
    """z = scores * scale + bias; z >= floor moves to the front of its row. NaN is kept."""
    members, n = scores.shape[1:]
    for i in prange(scores.shape[0] * members):
        b, k = i // members, i % members
        z, c, s, o = scores[b, k], columns[b, k], scale[k], bias[k]
        found = np.uintp(0)
        for block in range(n // BLOCK):
            found = _append(z, c, s, o, floor[k], block * BLOCK, found)
        counts[b, k] = _append_rest(z, c, s, o, floor[k], found)


@_parallel
def compact_largest(scores, columns, counts, scale, bias, floor, ks, bits):  # type: ignore[no-untyped-def]
    """As `compact`, but only the `ks[k]` largest of a row; equals of the last one stay too.

    Args:
        bits: the memory of `scores`, as integers of the same width.
    """
    members, n = scores.shape[1:]
    for i in prange(scores.shape[0] * members):
        b, k = i // members, i % members
        z, c, s, o, low = scores[b, k], columns[b, k], scale[k], bias[k], floor[k]
        wanted, found, room = ks[k], np.uintp(0), np.uintp(2 * ks[k] + 16)
        for block in range(n // BLOCK):
            found = _append(z, c, s, o, low, block * BLOCK, found)
            if found >= room:  # what is smaller than the k-th largest so far has no chance
                low = _kth_largest(z, bits[b, k], found, wanted)
                found = _keep(z, c, found, low)
                room = np.uintp(2 * max(wanted, np.int64(found)) + 16)
        found = _append_rest(z, c, s, o, low, found)
        if found > wanted:
            found = _keep(z, c, found, _kth_largest(z, bits[b, k], found, wanted))
        counts[b, k] = found


@_inlined
def _append(z, c, s, o, low, start, found):  # type: ignore[no-untyped-def]
    """Of the block at `start`, scores that reach `low` go to z[found] and after; the new `found`.

    Most blocks have none and are only read. `found` has no sign: no index counts from the end.
    """
    hits = np.int32(0)
    for t in range(BLOCK):
        hits += np.int32(not z[start + t] * s[start + t] + o[start + t] < low)
    if hits:
        for t in range(BLOCK):
            value = z[start + t] * s[start + t] + o[start + t]
            z[found] = value  # never ahead of what is read; a branch would be guessed wrong
            c[found] = start + t
            found += np.uintp(not value < low)
    return found


@_inner
def _append_rest(z, c, s, o, low, found):  # type: ignore[no-untyped-def]
    """What is left after the last whole block."""
    for j in range(z.size - z.size % BLOCK, z.size):
        value = z[j] * s[j] + o[j]
        z[found] = value
        c[found] = j
        found += np.uintp(not value < low)
    return found


@_parallel
def keep_at_least(scores, columns, counts, floor):  # type: ignore[no-untyped-def]
    """Of what is compact already, what is not below `floor`, by member."""
    rows, members = counts.shape
    for i in prange(rows * members):
        b, k = i // members, i % members
        counts[b, k] = _keep(scores[b, k], columns[b, k], counts[b, k], floor[k])


def nth_smallest(scores, counts, k, place, room):  # type: ignore[no-untyped-def]
    """Of the compact scores of member k the one that has `place` smaller ones before it.

    Args:
        room: memory for all of them.
    """
    _gather(scores, counts, k, room)
    return float(np.partition(room, place)[place])


@_inner
def _gather(scores, counts, k, out):  # type: ignore[no-untyped-def]
    """The compact scores of member k, one after the other."""
    place = 0
    for b in range(counts.shape[0]):
        for j in range(counts[b, k]):
            out[place] = scores[b, k, j]
            place += 1


@_inner
def _kth_largest(values, bits, count, k):  # type: ignore[no-untyped-def]
    """Of positive numbers: halving the interval of their bits, which are in the same order."""
    low, high = bits[0], bits[0]
    for j in range(count):
        low, high = min(low, bits[j]), max(high, bits[j])
    while low < high:
        middle = low + (high - low + 1) // 2
        enough = 0
        for j in range(count):
            enough += bits[j] >= middle
        if enough >= k:
            low = middle
        else:
            high = middle - 1
    for j in range(count):
        if bits[j] == low:
            return values[j]
    return values[0]


@_inner
def _keep(values, columns, count, low):  # type: ignore[no-untyped-def]
    found = np.uintp(0)
    for j in range(count):
        value, column = values[j], columns[j]
        values[found] = value
        columns[found] = column
        found += np.uintp(not value < low)
    return found


@_parallel
def decode(  # type: ignore[no-untyped-def]
    rows, centre, decoder, shrink, l1, scores, columns, counts, residual, slopes, squares, sums
):
    """residual = c D^ + a - x, slopes = dc at the active entries; by row ||residual||^2, sum c."""
    batch, members = counts.shape
    for i in prange(batch * members):
        b, k = i // members, i % members
        z, c, r, inv = scores[b, k], columns[b, k], residual[k, b], shrink[k]
        for t in range(r.size):
            r[t] = centre[k, t] - rows[b, t]
        sums[k, b] = _add_atoms(r, z, c, counts[b, k], decoder[k], inv)
        square = r[0] * 0
        for t in range(r.size):
            square += r[t] * r[t]
        squares[k, b] = square
        scale = r.dtype.type(2.0 / (batch * r.size))
        _dot_atoms(r, slopes[b, k], c, counts[b, k], decoder[k], inv, scale, l1[k] / batch)


@_inner
def _add_atoms(r, z, columns, count, atoms, inv):  # type: ignore[no-untyped-def]
    """r += sum_j z_j D^_j; returns sum_j z_j."""
    total = r[0] * 0
    whole = count - count % 4
    for j in range(0, whole, 4):
        c0, c1, c2, c3 = columns[j], columns[j + 1], columns[j + 2], columns[j + 3]
        w0, w1, w2, w3 = z[j] * inv[c0], z[j + 1] * inv[c1], z[j + 2] * inv[c2], z[j + 3] * inv[c3]
        a0, a1, a2, a3 = atoms[c0], atoms[c1], atoms[c2], atoms[c3]
        for t in range(r.size):
            r[t] += w0 * a0[t] + w1 * a1[t] + w2 * a2[t] + w3 * a3[t]
    for j in range(whole, count):
        w0, a0 = z[j] * inv[columns[j]], atoms[columns[j]]
        for t in range(r.size):
            r[t] += w0 * a0[t]
    for j in range(count):
        total += z[j]
    return total


@_inner
def _dot_atoms(r, out, columns, count, atoms, inv, scale, penalty):  # type: ignore[no-untyped-def]
    """out_j = scale r . D^_j + penalty."""
    zero = r[0] * 0
    whole = count - count % 4
    for j in range(0, whole, 4):
        c0, c1, c2, c3 = columns[j], columns[j + 1], columns[j + 2], columns[j + 3]
        a0, a1, a2, a3 = atoms[c0], atoms[c1], atoms[c2], atoms[c3]
        s0, s1, s2, s3 = zero, zero, zero, zero
        for t in range(r.size):
            s0 += r[t] * a0[t]
            s1 += r[t] * a1[t]
            s2 += r[t] * a2[t]
            s3 += r[t] * a3[t]
        out[j] = scale * s0 * inv[c0] + penalty
        out[j + 1] = scale * s1 * inv[c1] + penalty
        out[j + 2] = scale * s2 * inv[c2] + penalty
        out[j + 3] = scale * s3 * inv[c3] + penalty
    for j in range(whole, count):
        a0, s0 = atoms[columns[j]], zero
        for t in range(r.size):
            s0 += r[t] * a0[t]
        out[j] = scale * s0 * inv[columns[j]] + penalty


@_parallel
def by_feature(  # type: ignore[no-untyped-def]
    scores, columns, counts, slopes, first, sizes, starts, at, codes, ups, summed
):
    """A counting sort of all entries by feature; `summed` [K, n] = the sum of dc over rows.

    Args:
        first: where a member's entries begin, [K]; sizes: room, [K, blocks of rows, n].
    """
    batch, members = counts.shape
    blocks, n = sizes.shape[1:]
    for i in prange(members * blocks):
        k, block = i // blocks, i % blocks
        size = sizes[k, block]
        size[:] = 0
        for b in range(block * batch // blocks, (block + 1) * batch // blocks):
            for j in range(counts[b, k]):
                size[columns[b, k, j]] += 1
    for k in prange(members):
        place = first[k]
        for j in range(n):
            starts[k, j] = place
            for block in range(blocks):
                size_here = sizes[k, block, j]
                sizes[k, block, j] = place
                place += size_here
        starts[k, n] = place
    for i in prange(members * blocks):
        k, block = i // blocks, i % blocks
        size = sizes[k, block]
        for b in range(block * batch // blocks, (block + 1) * batch // blocks):
            c, z, g = columns[b, k], scores[b, k], slopes[b, k]
            for j in range(counts[b, k]):
                place = size[c[j]]
                size[c[j]] = place + 1
                at[place] = b
                codes[place] = z[j]
                ups[place] = g[j]
    for i in prange(members * n):
        k, j = i // n, i % n
        total = codes[0] * 0
        for place in range(starts[k, j], starts[k, j + 1]):
            total += ups[place]
        summed[k, j] = total


@_parallel
def gradients(  # type: ignore[no-untyped-def]
    tied, rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink, d_enc, d_dec
):
    """dE and dD of every feature; dE is in dD where E is D^, and `d_enc` is not touched."""
    members, n, d = decoder.shape
    chunks = (n + FEATURES - 1) // FEATURES
    for i in prange(members * chunks):
        k, chunk = i // chunks, i % chunks
        e = np.empty(d, rows.dtype)
        for j in range(chunk * FEATURES, min(n, (chunk + 1) * FEATURES)):
            _row(tied, k, j, rows, residual, centre, starts, at, codes, ups, summed, decoder,
                 shrink, e, d_dec[k, j])  # fmt: skip
            if not tied:
                d_enc[k, j] = e


@_parallel
def descend(  # type: ignore[no-untyped-def]
    tied, rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink,
    scalars, encoder, m_enc, v_enc, m_dec, v_dec
):  # fmt: skip
    """The same gradients, each row handed to Adam while it is in the cache."""
    members, n, d = decoder.shape
    chunks = (n + FEATURES - 1) // FEATURES
    for i in prange(members * chunks):
        k, chunk = i // chunks, i % chunks
        e, g = np.empty(d, rows.dtype), np.empty(d, rows.dtype)
        for j in range(chunk * FEATURES, min(n, (chunk + 1) * FEATURES)):
            _row(tied, k, j, rows, residual, centre, starts, at, codes, ups, summed, decoder,
                 shrink, e, g)  # fmt: skip
            _adam(decoder[k, j], m_dec[k, j], v_dec[k, j], g, scalars[k])
            if not tied:
                _adam(encoder[k, j], m_enc[k, j], v_enc[k, j], e, scalars[k])


@_inner
def _row(  # type: ignore[no-untyped-def]
    tied, k, j, rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink, e, g
):
    """e = dE, g = dD of feature j of member k."""
    d = g.size
    _sums(k, starts[k, j], starts[k, j + 1], rows, residual, at, codes, ups, e, g)
    shift, scale = summed[k, j], g.dtype.type(2.0 / (rows.shape[0] * d))
    atom, inv, along = decoder[k, j], shrink[k, j], g[0] * 0
    for t in range(d):
        e[t] -= shift * centre[k, t]
        g[t] *= scale
    if tied:
        for t in range(d):
            g[t] += e[t]
    for t in range(d):
        along += g[t] * atom[t]
    along *= inv * inv
    for t in range(d):
        g[t] = inv * (g[t] - along * atom[t])


@_inner
def _sums(k, low, high, rows, residual, at, codes, ups, e, g):  # type: ignore[no-untyped-def]
    """e = sum dc x, g = sum c r over the entries of a feature."""
    for t in range(e.size):
        e[t] = 0
        g[t] = 0
    whole = high - (high - low) % 4
    for i in range(low, whole, 4):
        u0, u1, u2, u3 = ups[i], ups[i + 1], ups[i + 2], ups[i + 3]
        w0, w1, w2, w3 = codes[i], codes[i + 1], codes[i + 2], codes[i + 3]
        b0, b1, b2, b3 = at[i], at[i + 1], at[i + 2], at[i + 3]
        x0, x1, x2, x3 = rows[b0], rows[b1], rows[b2], rows[b3]
        r0, r1, r2, r3 = residual[k, b0], residual[k, b1], residual[k, b2], residual[k, b3]
        for t in range(e.size):
            e[t] += u0 * x0[t] + u1 * x1[t] + u2 * x2[t] + u3 * x3[t]
            g[t] += w0 * r0[t] + w1 * r1[t] + w2 * r2[t] + w3 * r3[t]
    for i in range(whole, high):
        u0, w0, x0, r0 = ups[i], codes[i], rows[at[i]], residual[k, at[i]]
        for t in range(e.size):
            e[t] += u0 * x0[t]
            g[t] += w0 * r0[t]


@_inner
def _adam(p, m, v, g, scalars):  # type: ignore[no-untyped-def]
    """Adam, as `layout` has it."""
    rate, keep1, beta2, keep2 = scalars[RATE], scalars[KEEP1], scalars[BETA2], scalars[KEEP2]
    one, two, eps, decay = scalars[ONE], scalars[TWO], scalars[EPS], scalars[DECAY]
    for t in range(p.size):
        m[t] += keep1 * (g[t] - m[t])
        v[t] = beta2 * v[t] + keep2 * g[t] * g[t]
        p[t] += rate * (m[t] * one / (np.sqrt(v[t]) * two + eps) + decay * p[t])
