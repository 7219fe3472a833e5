"""A learned gain and a smooth threshold per feature."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures.linear import encoder_start
from ensemble_sae.signatures.protocol import Tensors
from ensemble_sae.signatures.relu import Untied


class Thresholding(Untied):
    """c = gain relu(z) h((z - t) / w + 1/2);  z = x E^T + b;  gain = exp(log_gain).

    h is 0 below 0, 1 above 1 and u^2 (3 - 2 u) between: zero below t - w/2, the line above
    t + w/2, with a derivative everywhere, so that t learns by ordinary gradients. w -> 0 is a
    hard threshold. Loss as `untied`.

    Source: the thresholding variant of the sparse-coding code behind Cunningham et al. 2023 (a
    gain and a smooth hard threshold). Deviation: h is a polynomial with exact zeros, not a
    sigmoid, so that a code is sparse and not only small.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`, `log_gain [n]`,
    `threshold [n]`. Buffers: `l1 []`, `bias_decay []`, `width []`, `threshold_start []`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = (*Untied.FEATURES, "log_gain", "threshold")

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        bias_decay: float = 0.0,
        width: float = 0.5,
        threshold_start: float = 0.5,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        params["log_gain"] = torch.zeros(n_dict)
        params["threshold"] = torch.full((n_dict,), float(threshold_start))
        numbers = {
            "l1": l1,
            "bias_decay": bias_decay,
            "width": width,
            "threshold_start": threshold_start,
        }
        return cls.finish(params, numbers, d_activation, options)

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        place = ((scores - params["threshold"]) / buffers["width"] + 0.5).clamp(0, 1)
        smooth = place.square() * (3 - 2 * place)
        return params["log_gain"].exp() * torch.relu(scores) * smooth
