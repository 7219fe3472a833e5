"""Sparsity by selection: topk per row, batchtopk over the batch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures.limits import Limit, whole
from ensemble_sae.signatures.linear import LinearDictionary, Pass, encoder_start
from ensemble_sae.signatures.protocol import Tensors
from ensemble_sae.signatures.ranking import keep_largest, kth_largest

UNSET = -1.0  # a threshold before the first step
MEMORY = 0.99  # of the running threshold, per step


class TopK(LinearDictionary):
    """c = relu(z) where z is among the k largest of its row, else 0;  z = (x - centre) E^T + b.

    Loss: mean over B and d of (x^ - x)^2, and the revival's term where that is on. k may differ
    between the members of a stack.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.3; aux-k in
    appendix A.2 (`revive = "aux_k"`). Deviations: a relu on the k largest; ties at the k-th
    place are all kept; E starts equal to D, the centre at the sample's mean.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`, `centre [d]`.
    Buffers: `k []`.
    """

    OPTIONS: ClassVar[dict[str, Any]] = LinearDictionary.OPTIONS | {"centring": "learned"}

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        k: float = 32.0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        return cls.finish(params, {"k": k}, d_activation, options)

    @classmethod
    def limits(cls, d_activation: int, n_dict: int) -> dict[str, Limit]:
        return {"k": whole(1, n_dict, f"n_dict = {n_dict}")}

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        return torch.relu(keep_largest(scores, buffers["k"]))


class BatchTopK(TopK):
    """c = relu(z) where it is among the B k largest of the whole batch, else 0.

    A row may use more than k features and another fewer. What is encoded later does not depend
    on its batch: c = relu(z) where z reaches `threshold`, the running mean of the smallest value
    that was kept in a step.

    Source: Bussmann et al. 2024, "BatchTopK Sparse Autoencoders", sections 3 and 3.1. Deviation:
    the threshold is an exponential mean over steps (0.99 of it per step), not an average over
    batches after training; k is the mean per row of one step's batch.

    Params: as `topk`. Buffers: `k []`, `threshold []` (-1 before the first step).
    """

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        k: float = 32.0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        return cls.finish(params, {"k": k, "threshold": UNSET}, d_activation, options)

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        return torch.relu(torch.where(scores < buffers["threshold"], 0, scores))

    @classmethod
    def training_code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        return cls.keep(buffers["k"], scores)

    @staticmethod
    def keep(k: Tensor, scores: Tensor) -> Tensor:
        """relu(z) where it is among the B k largest of the batch, else 0."""
        active = torch.relu(scores)
        smallest = kth_largest(active.flatten(), k * scores.shape[0])
        return torch.where(active < smallest, 0, active)

    @classmethod
    def report(
        cls, params: Tensors, buffers: Tensors, batch: Tensor, seen: Pass, error: Tensor
    ) -> Tensors:
        told = super().report(params, buffers, batch, seen, error)
        smallest = smallest_of(seen.code.detach())
        return {**told, "buffers/threshold": moved_threshold(buffers["threshold"], smallest)}


def smallest_of(code: Tensor) -> Tensor:
    """The smallest entry of a code that is not 0: `[B, n] -> []`; infinite where all are."""
    return torch.where(code > 0, code, torch.inf).amin()


def moved_threshold(threshold: Tensor, smallest: Tensor) -> Tensor:
    """The running threshold after a step in which `smallest` was kept."""
    step = torch.where(threshold < 0, smallest, torch.lerp(smallest, threshold, MEMORY))
    return torch.where(smallest.isfinite(), step, threshold)
