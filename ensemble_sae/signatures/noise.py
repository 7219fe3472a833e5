"""Sparsity from noise: what is small drowns, so that the code grows few and large."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures.linear import LinearDictionary, encoder_start
from ensemble_sae.signatures.protocol import Tensors


class Noise(LinearDictionary):
    """c = relu(z + noise * eps), eps ~ N(0, 1), in the loss; c = relu(z) when encoded.

    Loss: mean over B and d of (x^ - x)^2; no penalty. A feature that is not needed costs error
    whenever the noise makes it fire, so its bias falls.

    Source: an experiment of the sparse-coding channel (2023; fewer features, no dead ones).
    Deviation: the noise is added before the rectifier. After it, atoms of unit norm would only
    add a constant n noise^2 / d to the error, which drives nothing.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`.
    Buffers: `noise []`; `draw/code [B, n]` from the ensemble, at every step.
    """

    DRAWS: ClassVar[dict[str, str]] = {"code": "normal"}

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        noise: float = 1.0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        return cls.finish(params, {"noise": noise}, d_activation, options)

    @classmethod
    def training_code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        if "draw/code" not in buffers:
            return cls.code(params, buffers, scores)
        return torch.relu(scores + buffers["noise"] * buffers["draw/code"])
