"""The affine autoencoder: a learned centre, subtracted before and added after."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ensemble_sae.signatures import parts
from ensemble_sae.signatures.protocol import Loss, Tensors


class Affine:
    """c = relu((x - b_d) E^T + b);  x^ = c D^ + b_d;  D^ = the rows of D scaled to unit norm.

    Loss: mean over B and d of (x^ - x)^2 + l1 * mean_B sum_n c.

    Source: Bricken et al. 2023, "Towards Monosemanticity", section "Features as a Sparse
    Decomposition" and appendix "Sparse autoencoder training details" (pre-encoder bias,
    Kaiming-uniform start). Deviations: the unit norm of D's rows is kept inside the loss, not by
    a projection after each update; b_d starts at zero, not at the geometric median.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`, `decoder_bias [d]`.
    Buffers: `l1 []`.
    """

    @staticmethod
    def init(
        d_activation: int, n_dict: int, *, generator: torch.Generator, l1: float = 1e-3
    ) -> tuple[Tensors, Tensors]:
        params = {
            "encoder": _kaiming_uniform(n_dict, d_activation, generator),
            "encoder_bias": torch.zeros(n_dict),
            "decoder": _kaiming_uniform(n_dict, d_activation, generator),
            "decoder_bias": torch.zeros(d_activation),
        }
        return params, {"l1": torch.tensor(l1)}

    @staticmethod
    def encode(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        centred = batch - params["decoder_bias"]
        return parts.code(centred, params["encoder"], params["encoder_bias"])

    @staticmethod
    def decode(params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return torch.addmm(params["decoder_bias"], code, Affine.dictionary(params, buffers))

    @staticmethod
    def dictionary(params: Tensors, buffers: Tensors) -> Tensor:
        return parts.unit_rows(params["decoder"])

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> Loss:
        code = Affine.encode(params, buffers, batch)
        mse = parts.mean_squared_error(Affine.decode(params, buffers, code), batch)
        total = mse + buffers["l1"] * parts.mean_l1(code)
        return Loss(total, {"mse": mse, "l0": parts.mean_l0(code)})

    @staticmethod
    def project(params: Tensors, buffers: Tensors) -> Tensors:
        """Nothing to do: the loss sees unit rows only."""
        return params


def _kaiming_uniform(n_dict: int, d_activation: int, generator: torch.Generator) -> Tensor:
    """He et al. 2015, section 2.2, for a relu that reads `d_activation` inputs: `[n, d]`."""
    weight = torch.empty(n_dict, d_activation)
    bound = math.sqrt(6.0 / d_activation)
    return weight.uniform_(-bound, bound, generator=generator)
