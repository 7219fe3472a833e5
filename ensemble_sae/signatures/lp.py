"""A penalty between L0 and L1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.signatures.linear import LinearDictionary, Pass, encoder_start
from ensemble_sae.signatures.protocol import Tensors

OFFSET = 1e-3


class Lp(LinearDictionary):
    """The code of `untied`; loss: mean (x^ - x)^2 + l1 * mean_B sum_n ((c + 0.001)^p - 0.001^p).

    p falls in a straight line from 1 to `p` over `anneal` steps (0: it is p from the start).

    Source: Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for Language Model
    Interpretability with Board Game Models", section 4.1 (p-annealing); p = 1/2 was tried in the
    sparse-coding channel in 2023. Deviations: the offset keeps the gradient finite at 0; l1 is
    not rescaled while p falls (the set-point `target_l0` does that by what counts).

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`.
    Buffers: `l1 []`, `p []`, `anneal []`; `step []` from the ensemble.
    """

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        p: float = 0.5,
        anneal: float = 0.0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        numbers = {"l1": l1, "p": p, "anneal": anneal, "step": 0.0}
        return cls.finish(params, numbers, d_activation, options)

    @classmethod
    def penalty(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        p = power(buffers)
        size = (seen.code + OFFSET).pow(p) - OFFSET**p
        return buffers["l1"] * size.sum() / size.shape[0]


def power(buffers: Tensors) -> Tensor:
    """p at this step."""
    anneal = buffers["anneal"]
    share = torch.where(anneal > 0, buffers["step"] / torch.where(anneal > 0, anneal, 1), 1)
    return 1 + (buffers["p"] - 1) * share.clamp(max=1)
