"""Members of several dictionary sizes in one stack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.signatures.linear import encoder_start
from ensemble_sae.signatures.protocol import Tensors
from ensemble_sae.signatures.relu import Untied


class Masked(Untied):
    """`untied` with c = relu(z) * mask: padded to the largest n of its stack by dead features.

    The mask changes no value: a member's numbers equal those it has alone. Where a stack of one
    size is cheaper than a stack per size is the planner's question.

    Source: the masked variant of the sparse-coding code behind Cunningham et al. 2023.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`.
    Buffers: `l1 []`, `bias_decay []`, `mask [n]` (1 for a feature, 0 for padding).
    """

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        bias_decay: float = 0.0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        numbers: dict[str, float | Tensor] = {
            "l1": l1,
            "bias_decay": bias_decay,
            "mask": torch.ones(n_dict),
        }
        return cls.finish(params, numbers, d_activation, options)

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        return torch.relu(scores) * buffers["mask"]

    @classmethod
    def pad(cls, params: Tensors, buffers: Tensors, n_dict: int) -> tuple[Tensors, Tensors]:
        """The same member with features up to `n_dict` that are zero and masked."""
        own = params["decoder"].shape[0]

        def padded(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor.new_zeros(n_dict - own, *tensor.shape[1:])])

        wide = {k: padded(t) if k in cls.FEATURES else t for k, t in params.items()}
        return wide, {k: padded(t) if k in ("mask", "dead") else t for k, t in buffers.items()}

    @classmethod
    def cut(cls, params: Tensors, buffers: Tensors, n_dict: int) -> tuple[Tensors, Tensors]:
        """The inverse of `pad`: the first `n_dict` features."""
        own = {k: t[:n_dict] if k in cls.FEATURES else t for k, t in params.items()}
        return own, {k: t[:n_dict] if k in ("mask", "dead") else t for k, t in buffers.items()}
