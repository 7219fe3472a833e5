"""The untied autoencoder: an encoder of its own beside the dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.signatures import parts
from ensemble_sae.signatures.protocol import Loss, Tensors


class Untied:
    """c = relu(x E^T + b);  x^ = c D^;  D^ = the rows of D scaled to unit norm.

    Loss: mean over B and d of (x^ - x)^2 + l1 * mean_B sum_n |c| + bias_decay * ||b||_2.
    The gradient flows through the normalisation of D; E is not normalised.

    Source: Cunningham et al. 2023, "Sparse Autoencoders Find Highly Interpretable Features in
    Language Models", section 2; the L2 norm of the encoder bias as in the sparse-coding code
    that the paper grew from. Deviation: E starts equal to D, with unit rows, which leaves fewer
    features dead than two independent draws.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`.
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
        decoder = parts.random_directions(n_dict, d_activation, generator)
        params = {
            "encoder": decoder.clone(),
            "encoder_bias": torch.zeros(n_dict),
            "decoder": decoder,
        }
        return params, {"l1": torch.tensor(l1), "bias_decay": torch.tensor(bias_decay)}

    @staticmethod
    def encode(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return parts.code(batch, params["encoder"], params["encoder_bias"])

    @staticmethod
    def decode(params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return code @ Untied.dictionary(params, buffers)

    @staticmethod
    def dictionary(params: Tensors, buffers: Tensors) -> Tensor:
        return parts.unit_rows(params["decoder"])

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> Loss:
        code = Untied.encode(params, buffers, batch)
        mse = parts.mean_squared_error(Untied.decode(params, buffers, code), batch)
        l1 = buffers["l1"] * parts.mean_l1(code)
        decay = buffers["bias_decay"] * torch.linalg.vector_norm(params["encoder_bias"])
        return Loss(mse + l1 + decay, {"mse": mse, "l0": parts.mean_l0(code)})

    @staticmethod
    def project(params: Tensors, buffers: Tensors) -> Tensors:
        """Nothing to do: the loss sees unit rows only."""
        return params
