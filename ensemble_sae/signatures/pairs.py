"""Several hook points at once: transcoder and crosscoder."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures import parts
from ensemble_sae.signatures.protocol import Loss, Tensors


class Transcoder:
    """c = relu(x E^T + b);  t^ = c D^ + decoder_bias;  x and t are rows of two hook points.

    Loss: mean over B and d_out of (t^ - t)^2 + l1 * mean_B sum_n c. A row of the batch is (x, t).

    Source: Dunefsky et al. 2024, "Transcoders Find Interpretable LLM Feature Circuits", section
    3.1. Deviations: unit rows of D inside the loss; squared error as a mean over d_out.

    Params: `encoder [n, d_in]`, `encoder_bias [n]`, `decoder [n, d_out]`, `decoder_bias [d_out]`.
    Buffers: `l1 []`.
    """

    TAKES_TARGET = True  # its hook is "INPUT -> TARGET"
    FEATURES: ClassVar[tuple[str, ...]] = ("encoder", "encoder_bias", "decoder")

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        widths: tuple[int, ...],
        l1: float = 1e-3,
    ) -> tuple[Tensors, Tensors]:
        d_out = sum(widths) - d_activation
        params = {
            "encoder": parts.random_directions(n_dict, d_activation, generator),
            "encoder_bias": torch.zeros(n_dict),
            "decoder": parts.random_directions(n_dict, d_out, generator),
            "decoder_bias": torch.zeros(d_out),
        }
        return params, {"l1": torch.tensor(float(l1))}

    @classmethod
    def fit(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> tuple[Tensors, Tensors]:
        """The bias starts at the targets' mean."""
        mean = cls.target(params, buffers, rows.double()).mean(0)
        return {**params, "decoder_bias": mean.to(params["decoder_bias"])}, buffers

    @classmethod
    def enter(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        """Rows as the dictionary sees them: the targets' part centred."""
        inputs = batch[:, : params["encoder"].shape[1]]
        wanted = cls.target(params, buffers, batch) - params["decoder_bias"]
        return torch.cat([inputs, wanted], 1)

    @classmethod
    def encode(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        """`[B, d_in]` or `[B, d_in + d_out] -> [B, n]`."""
        rows = batch[:, : params["encoder"].shape[1]]
        return torch.relu(parts.affine(rows, params["encoder"], params["encoder_bias"]))

    @classmethod
    def decode(cls, params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return code @ parts.unit_rows(params["decoder"]) + params["decoder_bias"]

    @classmethod
    def dictionary(cls, params: Tensors, buffers: Tensors) -> Tensor:
        return parts.unit_rows(params["decoder"])

    @classmethod
    def target(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return batch[:, params["encoder"].shape[1] :]

    @classmethod
    def loss(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Loss:
        code = cls.encode(params, buffers, batch)
        wanted = cls.target(params, buffers, batch)
        mse = parts.mean_squared_error(cls.decode(params, buffers, code), wanted)
        aux = {"mse": mse.detach(), **parts.activity(code)}
        return Loss(mse + buffers["l1"] * parts.mean_sum(code), aux)

    @classmethod
    def project(cls, params: Tensors, buffers: Tensors) -> Tensors:
        return params


class Crosscoder:
    """c = relu(sum_l x_l E_l^T + b);  x^_l = c D_l + b_l;  one code for the rows of L hook points.

    Loss: mean over B and all dimensions of (x^ - x)^2 + l1 * mean_B sum_i c_i sum_l ||D_i,l||. D
    is free: a feature's norm at a hook point says how much of it is there.

    Source: Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing",
    section 2. Deviation: the squared error is a mean over dimensions, not a sum over layers.

    Params: `encoder [n, D]`, `encoder_bias [n]`, `decoder [n, D]`, `decoder_bias [D]`, D the sum
    of the widths. Buffers: `l1 []`, `layers [L, D]` (1 where a dimension belongs to a hook point).
    """

    LEAST_POINTS = 2  # its hook is "A + B" or more
    FEATURES: ClassVar[tuple[str, ...]] = ("encoder", "encoder_bias", "decoder")

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        widths: tuple[int, ...],
        l1: float = 1e-3,
    ) -> tuple[Tensors, Tensors]:
        decoder = parts.random_directions(n_dict, d_activation, generator)
        params = {
            "encoder": decoder.clone(),
            "encoder_bias": torch.zeros(n_dict),
            "decoder": decoder,
            "decoder_bias": torch.zeros(d_activation),
        }
        layer = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
        layers = (layer == torch.arange(len(widths))[:, None]).float()
        return params, {"l1": torch.tensor(float(l1)), "layers": layers}

    @classmethod
    def fit(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> tuple[Tensors, Tensors]:
        """The bias starts at the rows' mean."""
        mean = rows.double().mean(0)
        return {**params, "decoder_bias": mean.to(params["decoder_bias"])}, buffers

    @classmethod
    def enter(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        """Rows as the dictionary sees them: centred."""
        return batch - params["decoder_bias"]

    @classmethod
    def encode(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return torch.relu(parts.affine(batch, params["encoder"], params["encoder_bias"]))

    @classmethod
    def decode(cls, params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return code @ params["decoder"] + params["decoder_bias"]

    @classmethod
    def dictionary(cls, params: Tensors, buffers: Tensors) -> Tensor:
        return parts.unit_rows(params["decoder"])

    @classmethod
    def layer_norms(cls, params: Tensors, buffers: Tensors) -> Tensor:
        """||D_i,l||: how much of a feature each hook point has, `[n, L]`.

        A zero norm takes no gradient (the root has none at 0).
        """
        squares = params["decoder"].square() @ buffers["layers"].mT
        positive = squares > 0
        return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)

    @classmethod
    def loss(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Loss:
        code = cls.encode(params, buffers, batch)
        mse = parts.mean_squared_error(cls.decode(params, buffers, code), batch)
        weighted = code @ cls.layer_norms(params, buffers).sum(1)
        aux = {"mse": mse.detach(), **parts.activity(code)}
        return Loss(mse + buffers["l1"] * weighted.mean(), aux)

    @classmethod
    def project(cls, params: Tensors, buffers: Tensors) -> Tensors:
        return params
