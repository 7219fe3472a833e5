"""How many members are stepped at once.

One member's code and its gradient take 2 B n floats. On a CPU a slice of members is as wide as
fits those into the shared cache, so that each pass over them is a pass over cache; on a device it
is as wide as a fixed share of memory allows. The cut depends on shapes and device kind alone.
"""

from __future__ import annotations

import itertools

import torch

from ensemble_sae.signatures import Tensors

ROOM = {"cpu": 12 * 2**20, "cuda": 2 * 2**30}  # bytes for the [k, B, n] temporaries of a slice


def slice_width(batch_size: int, widest: int, element: int, kind: str) -> int:
    """Members in a slice, for `widest` features of `element` bytes on a kind of device."""
    return max(1, ROOM.get(kind, ROOM["cuda"]) // (2 * batch_size * widest * element))


def slice_bounds(
    params: Tensors, members: int, batch_size: int, device: torch.device
) -> list[tuple[int, int]]:
    """Consecutive `(start, stop)` that cover all members, of equal width to within one."""
    widest = max((tensor.shape[1] for tensor in params.values() if tensor.dim() > 1), default=1)
    element = max(tensor.element_size() for tensor in params.values())
    count = -(-members // slice_width(batch_size, widest, element, device.type))
    cuts = [round(i * members / count) for i in range(count + 1)]
    return list(itertools.pairwise(cuts))
