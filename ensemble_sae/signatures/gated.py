"""Gated: one path says which features are active, another how much."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures import frame, parts
from ensemble_sae.signatures.linear import LinearDictionary, Pass
from ensemble_sae.signatures.protocol import Tensors


class Gated(LinearDictionary):
    """c = relu(q exp(r) + b_mag) where q + b_gate > 0, else 0;  q = (x - centre) E^T.

    Loss, with the gate g = relu(q + b_gate) and a dictionary that takes no gradient from it:
    mean (x^ - x)^2 + l1 * mean_B sum_n g + mean (g D^ - x)^2.

    Source: Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse
    Autoencoders", section 3.2, equations 5 to 8. Deviation: squared errors are means over d.

    Params: `encoder [n, d]`, `gate_bias [n]`, `magnitude_bias [n]`, `magnitude_scale [n]` (r),
    `decoder [n, d]`, `centre [d]`. Buffers: `l1 []`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = (
        "encoder",
        "gate_bias",
        "magnitude_bias",
        "magnitude_scale",
        "decoder",
    )
    OPTIONS: ClassVar[dict[str, Any]] = LinearDictionary.OPTIONS | {"centring": "learned"}

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        decoder = parts.random_directions(n_dict, d_activation, generator)
        vectors = ("gate_bias", "magnitude_bias", "magnitude_scale")
        params = {"encoder": decoder.clone(), "decoder": decoder}
        params |= {name: torch.zeros(n_dict) for name in vectors}
        return cls.finish(params, {"l1": l1}, d_activation, options)

    @classmethod
    def scores(cls, params: Tensors, buffers: Tensors, rows: Tensor, atoms: Tensor) -> Tensor:
        """The gate before its step, q + b_gate."""
        return parts.affine(rows, params["encoder"], params["gate_bias"])

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        shared = scores - params["gate_bias"]
        magnitude = torch.relu(shared * params["magnitude_scale"].exp() + params["magnitude_bias"])
        return torch.where(scores > 0, magnitude, 0)

    @classmethod
    def penalty(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        gate = torch.relu(seen.scores)
        still = {name: tensor.detach() for name, tensor in params.items()}
        by_gate = frame.combine(still, gate, seen.atoms.detach())
        auxiliary = parts.mean_squared_error(by_gate, seen.rows)
        return buffers["l1"] * parts.mean_sum(gate) + auxiliary
