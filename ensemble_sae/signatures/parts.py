"""Pieces that several signatures share."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(matrix: Tensor) -> Tensor:
    """Each row scaled to unit L2 norm: `[n, d] -> [n, d]`.

    A zero row stays zero, and takes its gradient as if it had norm 1: finite, and a way out.
    """
    norms = torch.linalg.vector_norm(matrix, dim=-1, keepdim=True)
    return matrix / torch.where(norms > 0, norms, 1)


def random_directions(n_dict: int, d_activation: int, generator: torch.Generator) -> Tensor:
    """`n_dict` directions drawn uniformly from the unit sphere, `[n, d]` float32."""
    return unit_rows(torch.randn(n_dict, d_activation, generator=generator))


def code(batch: Tensor, encoder: Tensor, bias: Tensor) -> Tensor:
    """c = relu(x E^T + b): `[B, d], [n, d], [n] -> [B, n]`."""
    return torch.relu(batch @ encoder.mT + bias)  # faster than addmm, which first fills with b


def mean_l1(code: Tensor) -> Tensor:
    """mean over the batch of sum_n |c|, for a code that is nowhere negative: `[B, n] -> []`."""
    return code.sum() / code.shape[0]


def mean_l0(code: Tensor) -> Tensor:
    """Mean number of active features per row: `[B, n] -> []`. Carries no gradient."""
    return code.detach().sign().sum() / code.shape[0]  # a code is nowhere negative


def mean_squared_error(reconstruction: Tensor, batch: Tensor) -> Tensor:
    """mean over batch and dimensions of (x^ - x)^2: `[B, d], [B, d] -> []`."""
    return (reconstruction - batch).square().mean()
