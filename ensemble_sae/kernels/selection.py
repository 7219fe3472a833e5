"""Which scores are active, moved to the front of their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
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
        loops: the module `compiled` or `plain`.
        scores: makes them, `[B, K, n]`, into memory that is then overwritten.
        scale, bias: `[K, n]`.
    """
    if selection == "batch":
        return _largest_of_batch(loops, scores, scale, bias, buffers, kept)
    active = _empty(scores(), kept)
    floor = _above_zero(bias)
    if selection == "all":
        _call(loops.compact, active, scale, bias, floor)
    else:
        ks = _ranks(buffers["k"], scale.shape[1])
        bits = torch.int32 if scale.dtype == torch.float32 else torch.int64
        _call(loops.compact_largest, active, scale, bias, floor, ks, active.values.view(bits))
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
    _call(loops.compact, active, scale, bias, floor)
    rows, _, n_dict = active.values.shape
    wanted = _ranks(buffers["k"] * rows, rows * n_dict)
    if bool(((active.counts.sum(0) < wanted) & (floor > lowest)).any()):
        scores()
        _call(loops.compact, active, scale, bias, lowest)
    smallest = torch.full_like(lowest, torch.inf)
    for k, (count, want) in enumerate(zip(*_lists(active.counts.sum(0), wanted), strict=True)):
        if count:
            values = kept.list("values", active.values, count).numpy()
            loops.gather(active.values.numpy(), active.counts.numpy(), k, values)
            place = max(count - want, 0)
            smallest[k] = float(np.partition(values, place)[place])
    _call(loops.keep_at_least, active, smallest)
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


def _call(loop: Callable[..., None], active: Compact, *given: Tensor) -> None:
    loop(*(tensor.numpy() for tensor in (*active, *given)))


def _above_zero(like: Tensor) -> Tensor:
    """The smallest positive number, for each member."""
    return torch.nextafter(*like.new_tensor([[0.0], [1.0]])).expand(like.shape[0])


def _ranks(k: Tensor, most: int) -> Tensor:
    """As `ranking.kth_largest` rounds them."""
    return k.round().long().clamp(1, most)
