"""Dictionaries without negative entries, for activations that have none."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures import frame, parts
from ensemble_sae.signatures.protocol import Tensors
from ensemble_sae.signatures.relu import Untied


class Positive(Untied):
    """Untied or tied (`tied = true`) with D >= 0, kept so by a projection after each update.

    Loss as `untied`. Source: the positive variants of the sparse-coding code behind Cunningham et
    al. 2023, made for MLP activations after a relu; there the encoder bias starts at -1
    (`bias_start`), since all the rows point into one orthant and so do all the atoms.

    Params: `encoder [n, d]` (untied alone), `encoder_bias [n]`, `decoder [n, d]`.
    Buffers: `l1 []`, `bias_decay []`, `bias_start []`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("encoder", "encoder_bias", "decoder")

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        bias_decay: float = 0.0,
        bias_start: float = 0.0,
        tied: bool = True,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        decoder = parts.random_directions(n_dict, d_activation, generator).abs()
        params = {"encoder_bias": torch.full((n_dict,), float(bias_start)), "decoder": decoder}
        if not tied:
            params["encoder"] = decoder.clone()
        numbers = {"l1": l1, "bias_decay": bias_decay, "bias_start": bias_start}
        return cls.finish(params, numbers, d_activation, options)

    @classmethod
    def scores(cls, params: Tensors, buffers: Tensors, rows: Tensor, atoms: Tensor) -> Tensor:
        """z = x E^T + b, or x D^^T + b where there is no E."""
        return parts.affine(rows, params.get("encoder", atoms), params["encoder_bias"])

    @classmethod
    def project(cls, params: Tensors, buffers: Tensors) -> Tensors:
        return frame.project({**params, "decoder": params["decoder"].clamp_min(0)}, buffers)
