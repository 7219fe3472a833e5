"""Reconstruction ICA: no rectifier, no bias, no sparsity by zeros."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures import frame
from ensemble_sae.signatures.linear import LinearDictionary, Pass
from ensemble_sae.signatures.parts import random_directions
from ensemble_sae.signatures.protocol import Tensors


class Rica(LinearDictionary):
    """c = x W^T;  x^ = c W.

    Loss: mean over B and d of (x^ - x)^2 + l1 * mean_B sum_n g(c); g is the smooth L1,
    c^2 / (2 beta) where |c| < beta and |c| - beta / 2 beyond (beta = 0: |c|).

    A code has no zeros: its L0 is n by design. W is free, `dictionary` gives its unit rows.

    Source: Le et al. 2011, "ICA with Reconstruction Cost for Efficient Overcomplete Feature
    Learning", section 3. Deviation: the smooth L1 in the place of log cosh; their whitening is
    the option `whitening`.

    Params: `decoder [n, d]` (W). Buffers: `l1 []`, `beta []`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("decoder",)
    OPTIONS: ClassVar[dict[str, Any]] = {
        name: frame.OPTIONS[name] for name in ("input_relu", "centring", "whitening")
    }

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        beta: float = 1.0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        # W^T W is about the identity at the start, whatever n / d is.
        scale = (d_activation / n_dict) ** 0.5
        params = {"decoder": scale * random_directions(n_dict, d_activation, generator)}
        always = {"decoder_bias": False, "unit_norm": "loss"}
        return cls.finish(params, {"l1": l1, "beta": beta}, d_activation, options | always)

    @classmethod
    def encode(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return frame.enter(params, buffers, batch) @ params["decoder"].mT

    @classmethod
    def decode(cls, params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return frame.leave(params, buffers, code @ params["decoder"])

    @classmethod
    def forward(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Pass:
        rows, atoms = frame.enter(params, buffers, batch), params["decoder"]
        code = rows @ atoms.mT
        return Pass(rows, atoms, code, code, code @ atoms)

    @classmethod
    def penalty(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        size, beta = seen.code.abs(), buffers["beta"]
        near = seen.code.square() / (2 * torch.where(beta > 0, beta, 1))
        smooth = torch.where(size < beta, near, size - beta / 2)
        return buffers["l1"] * smooth.sum() / smooth.shape[0]
