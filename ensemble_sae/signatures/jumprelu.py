"""JumpReLU: a learned threshold per feature, trained through pseudo-derivatives."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures.linear import LinearDictionary, Pass, encoder_start
from ensemble_sae.signatures.protocol import Tensors


class JumpReLU(LinearDictionary):
    """c = z where z > t, else 0;  z = x E^T + b;  t = exp(log_threshold);  x^ = c D^ + b_d.

    Loss: mean over B and d of (x^ - x)^2 + l0_coefficient * mean_B sum_n [z > t].

    Neither c nor the step has a useful derivative in t, so the straight-through ones of the paper
    stand in, with a rectangle kernel of width `bandwidth` e and R = [|z - t| < e / 2]:

        dc / dt = -(t / e) R        d[z > t] / dt = -R / e

    Source: Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with
    JumpReLU Sparse Autoencoders", section 3, equations 9 to 12. Deviations: E starts equal to D;
    thresholds start at `threshold_start`, in the units of the codes here, where a row's
    coordinates and not its norm are about 1.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`, `log_threshold [n]`,
    `decoder_bias [d]`. Buffers: `l0_coefficient []`, `bandwidth []`, `threshold_start []`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = (*LinearDictionary.FEATURES, "log_threshold")
    OPTIONS: ClassVar[dict[str, Any]] = LinearDictionary.OPTIONS | {"decoder_bias": True}

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l0_coefficient: float = 1e-3,
        bandwidth: float = 0.5,
        threshold_start: float = 0.5,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        params["log_threshold"] = torch.full((n_dict,), math.log(threshold_start))
        numbers = {
            "l0_coefficient": l0_coefficient,
            "bandwidth": bandwidth,
            "threshold_start": threshold_start,
        }
        return cls.finish(params, numbers, d_activation, options)

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        return torch.where(scores > params["log_threshold"].exp(), scores, 0)

    @classmethod
    def training_code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        threshold = params["log_threshold"].exp()
        slope = -threshold.detach() * _window(threshold, buffers, scores)
        return torch.where(scores > threshold, scores, 0) + slope * (threshold - threshold.detach())

    @classmethod
    def penalty(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        threshold = params["log_threshold"].exp()
        slope = -_window(threshold, buffers, seen.scores)
        active = (seen.scores > threshold).to(slope) + slope * (threshold - threshold.detach())
        return buffers["l0_coefficient"] * active.sum() / active.shape[0]


def _window(threshold: Tensor, buffers: Tensors, scores: Tensor) -> Tensor:
    """R / e, without a gradient: `[n], [B, n] -> [B, n]`."""
    width = buffers["bandwidth"]
    near = (scores.detach() - threshold.detach()).abs() < width / 2
    return near / width
