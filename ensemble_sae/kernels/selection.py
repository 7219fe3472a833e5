"""Which scores are active, moved to the front of their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.kernels.forms import Selection
from ensemble_sae.kernels.kept import Kept
from ensemble_sae.signatures import Tensors

GUESS = 0.5  # of the running threshold: below this nothing is expected among the largest


class Compact(NamedTuple):
    """The first `counts [B, K]` entries of a row: `values`, `columns` `[B, K, n]`."""

    values: Tensor
    columns: Tensor
    counts: Tensor


def select(
    selection: Selection,
    loops: Any,
    scores: Callable[[], Tensor],
    scale: Tensor,
    bias: Tensor,
    buffers: Tensors,
    kept: Kept,
) -> tuple[Compact, Tensor | None]:
    """The active entries of z = scores * scale + bias; with `batch` also each member's smallest.

    Args:
        loops: as of `SparseKernel`.
        scores: makes them, `[B, K, n]`, into memory that is then overwritten.
        scale, bias: `[K, n]`.
    """
    if selection == "batch":
        return _largest_of_batch(loops, scores, scale, bias, buffers, kept)
    active = _empty(scores(), kept)
    floor = _above_zero(bias)
    if selection == "all":
        loops.compact(*loops.take(*active, scale, bias, floor))
    else:
        ks = _ranks(buffers["k"], scale.shape[1])
        bits = torch.int32 if scale.dtype == torch.float32 else torch.int64
        given = scale, bias, floor, ks, active.values.view(bits)
        loops.compact_largest(*loops.take(*active, *given))
    return active, None


def _largest_of_batch(
    loops: Any,
    scores: Callable[[], Tensor],
    scale: Tensor,
    bias: Tensor,
    buffers: Tensors,
    kept: Kept,
) -> tuple[Compact, Tensor]:
    """The B k largest of each member, as `BatchTopK` has them.

    Only scores near the running threshold or above are looked at; where that turns out to be too
    few, all that are positive.
    """
    active, lowest = _empty(scores(), kept), _above_zero(bias)
    floor = torch.maximum(GUESS * buffers["threshold"], lowest)
    loops.compact(*loops.take(*active, scale, bias, floor))
    rows, _, n_dict = active.values.shape
    wanted = _ranks(buffers["k"] * rows, rows * n_dict)
    if bool(((active.counts.sum(0) < wanted) & (floor > lowest)).any()):
        scores()
        loops.compact(*loops.take(*active, scale, bias, lowest))
    smallest = torch.full_like(lowest, torch.inf)
    for k, (count, want) in enumerate(zip(*_lists(active.counts.sum(0), wanted), strict=True)):
        if count:
            room = kept.list("values", active.values, count)
            values, counts, room = loops.take(active.values, active.counts, room)
            smallest[k] = loops.nth_smallest(values, counts, k, max(count - want, 0), room)
    loops.keep_at_least(*loops.take(*active, smallest))
    return active, smallest


def _lists(*tensors: Tensor) -> list[list[int]]:
    return [tensor.tolist() for tensor in tensors]


def _empty(scores: Tensor, kept: Kept) -> Compact:
    rows, members, _ = scores.shape
    return Compact(
        scores,
        kept.array("columns", scores, dtype=torch.int32),
        kept.array("counts", scores, rows, members, dtype=torch.int64),
    )


def _above_zero(like: Tensor) -> Tensor:
    """The smallest positive number, for each member."""
    return torch.nextafter(*like.new_tensor([[0.0], [1.0]])).expand(like.shape[0])


def _ranks(k: Tensor, most: int) -> Tensor:
    """As `ranking.kth_largest` rounds them."""
    return k.round().long().clamp(1, most)
