"""The tied autoencoder: the dictionary is its own encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.signatures import parts
from ensemble_sae.signatures.protocol import Loss, Tensors


class Tied:
    """c = relu(x D^^T + b);  x^ = c D^;  D^ = the rows of D scaled to unit norm.

    Loss: mean over B and d of (x^ - x)^2 + l1 * mean_B sum_n |c| + bias_decay * ||b||_2.
    The gradient flows through the normalisation, from the encoder and the decoder side.

    Source: Cunningham et al. 2023, "Sparse Autoencoders Find Highly Interpretable Features in
    Language Models", section 2 (M and M^T); bias decay as in `untied`.

    Params: `decoder [n, d]`, `encoder_bias [n]`.
    Buffers: `l1 []`, `bias_decay []`.
    """

    @staticmethod
    def init(
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        bias_decay: float = 0.0,
    ) -> tuple[Tensors, Tensors]:
        params = {
            "decoder": parts.random_directions(n_dict, d_activation, generator),
            "encoder_bias": torch.zeros(n_dict),
        }
        return params, {"l1": torch.tensor(l1), "bias_decay": torch.tensor(bias_decay)}

    @staticmethod
    def encode(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return parts.code(batch, Tied.dictionary(params, buffers), params["encoder_bias"])

    @staticmethod
    def decode(params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return code @ Tied.dictionary(params, buffers)

    @staticmethod
    def dictionary(params: Tensors, buffers: Tensors) -> Tensor:
        return parts.unit_rows(params["decoder"])

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> Loss:
        dictionary = Tied.dictionary(params, buffers)  # once: both sides use it
        code = parts.code(batch, dictionary, params["encoder_bias"])
        mse = parts.mean_squared_error(code @ dictionary, batch)
        l1 = buffers["l1"] * parts.mean_l1(code)
        decay = buffers["bias_decay"] * torch.linalg.vector_norm(params["encoder_bias"])
        return Loss(mse + l1 + decay, {"mse": mse, "l0": parts.mean_l0(code)})

    @staticmethod
    def project(params: Tensors, buffers: Tensors) -> Tensors:
        """Nothing to do: the loss sees unit rows only."""
        return params
