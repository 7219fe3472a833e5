"""The loops of the sparse step on a GPU: the programs of `gpu_loops`, launched.

The same functions on the same arrays as in `compiled`, which see; tensors in contiguous memory, and
what is small and only read in any. Every sum is taken in one fixed order, no number is added by
whoever comes first: the same step gives the same bits, whether it is asked to or not. Rows and
dictionaries are at most 2^20 wide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.kernels import gpu_loops

BLOCK = 1024  # scores of a row that are looked at together
PLACES = 128  # entries that are sorted together: one for each thread of four warps
TILE = 2048  # numbers of a few weight rows that a program holds at a time
PER_WARP = 512  # numbers that a warp holds of each array, 16 for a thread


def take(*tensors: Tensor) -> list[Tensor]:
    """The memory of tensors, as the functions here take it: the tensors."""
    return list(tensors)


def use_threads(count: int) -> None:
    """Threads are the GPU's own matter."""


def compact(
    scores: Tensor, columns: Tensor, counts: Tensor, scale: Tensor, bias: Tensor, floor: Tensor
) -> None:
    """As `compiled.compact`."""
    given = scale.contiguous(), bias.contiguous(), floor.contiguous()
    arrays = scores, columns, counts, *given
    _launch(gpu_loops.compact, counts.numel(), *arrays, *scores.shape[1:], **_block(scores))


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
    """As `compiled.compact_largest`; `bits` only says what the integers are."""
    given = (tensor.contiguous() for tensor in (scale, bias, floor, ks))
    arrays = scores, columns, counts, *given
    size = _power_of_two(scores.shape[2])
    options = {
        "BITS": gpu_loops.INTEGERS[bits.dtype],
        "SIGN": torch.iinfo(bits.dtype).max,
        "SIZE": size,
        "num_warps": _warps(size),
    }
    _launch(gpu_loops.compact_largest, counts.numel(), *arrays, *scores.shape[1:], **options)


def keep_at_least(scores: Tensor, columns: Tensor, counts: Tensor, floor: Tensor) -> None:
    """As `compiled.keep_at_least`."""
    arrays = scores, columns, counts, floor.contiguous()
    _launch(gpu_loops.keep_at_least, counts.numel(), *arrays, *scores.shape[1:], **_block(scores))


def nth_smallest(scores: Tensor, counts: Tensor, k: int, place: int, room: Tensor) -> float:
    """As `compiled.nth_smallest`."""
    own = scores[:, k]
    there = torch.arange(own.shape[-1], device=own.device) < counts[:, k, None]
    torch.masked_select(own, there, out=room)
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
    read = rows, centre, decoder, shrink, l1.contiguous(), scores, columns, counts
    sizes = rows.shape[0], *decoder.shape
    arrays = *read, residual, slopes, squares, sums
    _launch(gpu_loops.decode, counts.numel(), *arrays, *sizes, **_tile(sizes[-1]))


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
    """As `compiled.by_feature`."""
    batch, members = counts.shape
    _, blocks, n = sizes.shape
    per_block = -(-batch // blocks)
    options = {"BLOCK": PLACES, "num_warps": 4}
    shape = members, n, blocks, per_block
    sizes.zero_()
    _launch(gpu_loops.count_columns, counts.numel(), columns, counts, sizes, *shape, **options)
    _make_places(sizes, first, starts)
    entries = scores, columns, counts, slopes, sizes, at, codes, ups
    _launch(gpu_loops.place_entries, members * blocks, *entries, batch, *shape, **options)
    of = ups, starts, summed, n
    _launch(gpu_loops.sum_features, members * n, *of, BLOCK=PLACES, num_warps=1)


def _make_places(sizes: Tensor, first: Tensor, starts: Tensor) -> None:
    """Of the numbers of entries: the places of the first of them, in `sizes` and `starts`.

    A feature's entries come block by block.
    """
    members, blocks, n = sizes.shape
    ends = sizes.mT.reshape(members, n * blocks).cumsum(1).add_(first[:, None])
    starts[:, 0] = first
    starts[:, 1:] = ends[:, blocks - 1 :: blocks]
    torch.sub(ends.view(members, n, blocks).mT, sizes, out=sizes)


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
    read = rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink
    members, n, d = decoder.shape
    arrays, sizes = (*read, d_enc, d_dec), (len(rows), n, d)
    _launch(gpu_loops.gradients, members * n, *arrays, *sizes, TIED=tied, **_tile(d))


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
    """As `compiled.descend`."""
    read = rows, residual, centre, starts, at, codes, ups, summed, decoder, shrink
    moved = scalars.contiguous(), encoder, m_enc, v_enc, m_dec, v_dec
    members, n, d = decoder.shape
    sizes = len(rows), n, d, scalars.shape[1]
    _launch(gpu_loops.descend, members * n, *read, *moved, *sizes, TIED=tied, **_tile(d))


def _launch(loop: Any, programs: int, *given: Any, **options: Any) -> None:
    tensors = [value for value in given if isinstance(value, Tensor)]
    assert all(tensor.is_contiguous() for tensor in tensors), "a loop counts in whole rows"
    with torch.cuda.device_of(tensors[0]):  # not always the current one
        loop[(programs,)](*given, **options)


def _block(scores: Tensor) -> dict[str, int]:
    """How many scores of a row are looked at together, and by how many warps."""
    size = min(BLOCK, _power_of_two(scores.shape[2]))
    return {"BLOCK": size, "num_warps": _warps(size)}


def _tile(d: int) -> dict[str, int]:
    """How many weight rows are held at a time, how wide, and by how many warps."""
    width = _power_of_two(d)
    entries = max(1, min(16, TILE // width))
    return {"D": width, "ENTRIES": entries, "num_warps": _warps(width * entries)}


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _warps(size: int) -> int:
    return max(1, min(32, size // PER_WARP))
