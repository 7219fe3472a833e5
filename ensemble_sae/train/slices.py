"""How many members are stepped at once.

One member's code and its gradient take 2 B n floats. On a CPU a slice of members is as wide as
fits those into the shared cache, so that each pass over them is a pass over cache; on a device it
is as wide as a fixed share of memory allows. The cut depends on shapes, on the device's kind and on
who takes which kernel, alone.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors

ROOM = {"cpu": 12 * 2**20, "cuda": 2 * 2**30}  # bytes for the [k, B, n] temporaries of a slice
SPARSE_ROOM = {"cpu": 64 * 2**20, "cuda": 2 * 2**30}  # for their [k, B, d] residuals, if sparse


class Slice(NamedTuple):
    """Members `start..stop` of a stack, which take the same kernel."""

    start: int
    stop: int
    is_sparse: bool = False


def slice_width(batch_size: int, widest: int, element: int, kind: str) -> int:
    """Members in a slice, for `widest` features of `element` bytes on a kind of device."""
    return max(1, ROOM.get(kind, ROOM["cuda"]) // (2 * batch_size * widest * element))


def slices(
    params: Tensors, is_sparse: Tensor, batch_size: int, device: torch.device
) -> list[Slice]:
    """Consecutive slices that cover all members, of equal width to within one in each run of
    members with the same kernel.

    Args:
        is_sparse: `[K]` bool.
    """
    widest = max((tensor.shape[1] for tensor in params.values() if tensor.dim() > 1), default=1)
    element = max(tensor.element_size() for tensor in params.values())
    widths = {False: slice_width(batch_size, widest, element, device.type)}
    if is_sparse.any():
        d = params["decoder"].shape[2]
        widths[True] = max(1, SPARSE_ROOM[device.type] // (batch_size * d * element))
    found, start = [], 0
    for sparse, run in itertools.groupby(is_sparse.tolist()):
        members = len(list(run))
        count = -(-members // widths[sparse])
        cuts = [start + round(i * members / count) for i in range(count + 1)]
        found += [Slice(a, b, sparse) for a, b in itertools.pairwise(cuts)]
        start += members
    return found
