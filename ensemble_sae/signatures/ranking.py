"""The k largest entries, where k is a number of the member and not of the stack."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class _KthLargest(torch.autograd.Function):
    """Below `vmap` a stack's k are plain numbers again; selection is linear, a sort is not."""

    @staticmethod
    def forward(values: Tensor, k: Tensor) -> Tensor:
        return _select(values[None], k[None])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, values: Tensor, k: Tensor) -> tuple[Tensor, int]:
        size, (values_dim, k_dim) = info.batch_size, in_dims
        values = (
            values.expand(size, *values.shape)
            if values_dim is None
            else values.movedim(values_dim, 0)
        )
        return _select(values, k.expand(size) if k_dim is None else k), 0


def kth_largest(values: Tensor, k: Tensor) -> Tensor:
    """The k-th largest of the last axis: `[..., m], [] -> [...]`; the smallest where k >= m.

    Exact, under `vmap` and `grad` too; carries no gradient. NaN counts as the largest.
    """
    found: Tensor = _KthLargest.apply(values.detach(), k.detach())
    return found


def keep_largest(values: Tensor, k: Tensor) -> Tensor:
    """`values` where they are among the k largest of their row, else 0: `[B, n] -> [B, n]`.

    Entries equal to the k-th largest are all kept. NaN is kept, so that it is seen.
    """
    return torch.where(values < kth_largest(values, k)[..., None], 0, values)


def _select(values: Tensor, k: Tensor) -> Tensor:
    """`[K, ..., m], [K] -> [K, ...]`."""
    last = values.shape[-1]
    ranks = k.round().long().clamp(1, last)
    if values.device.type != "cpu":
        largest = values.topk(int(ranks.max()), dim=-1).values
        where = (ranks - 1).view(-1, *[1] * (values.dim() - 1))
        return largest.gather(-1, where.expand(*values.shape[:-1], 1)).squeeze(-1)
    found = [
        # NumPy's partition is several times faster than topk or kthvalue on a CPU.
        np.partition(member.numpy(), last - rank, axis=-1)[..., last - rank]
        for member, rank in zip(values, ranks.tolist(), strict=True)
    ]
    return torch.from_numpy(np.stack(found))
