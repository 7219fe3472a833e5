"""Pieces that several signatures share."""

from __future__ import annotations

import math

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


def kaiming_uniform(n_dict: int, d_activation: int, generator: torch.Generator) -> Tensor:
    """He et al. 2015, section 2.2, for a relu that reads `d_activation` inputs: `[n, d]`."""
    weight = torch.empty(n_dict, d_activation)
    bound = math.sqrt(6.0 / d_activation)
    return weight.uniform_(-bound, bound, generator=generator)


def affine(batch: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b: `[B, d], [n, d], [n] -> [B, n]`."""
    return batch @ weight.mT + bias  # faster than addmm, which first fills with b


def mean_sum(values: Tensor) -> Tensor:
    """mean over the batch of sum_n: `[B, n] -> []`; of a code that is nowhere negative, its L1."""
    return values.sum() / values.shape[0]


def mean_squared_error(reconstruction: Tensor, batch: Tensor) -> Tensor:
    """mean over batch and dimensions of (x^ - x)^2: `[B, d], [B, d] -> []`."""
    return (reconstruction - batch).square().mean()


def activity(code: Tensor) -> dict[str, Tensor]:
    """What a step reports of its code `[B, n]`; carries no gradient.

    `l0` []: mean number of nonzero entries per row. `fired` [n]: rows on which a feature is
    nonzero.
    """
    fired = (code.detach() != 0).sum(0, dtype=code.dtype)
    return {"l0": fired.sum() / code.shape[0], "fired": fired}
