"""Terms of a loss that give dead features a gradient.

Both read the buffer `dead` [n] (1 for a feature that has not fired for a while), which the
ensemble keeps, and change nothing while no feature is dead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.signatures.protocol import Tensors
from ensemble_sae.signatures.ranking import keep_largest

OPTIONS: dict[str, Any] = {"revive": "none", "aux_k": 64.0, "aux_weight": 1 / 32}


def add(buffers: Tensors, n_dict: int, options: dict[str, Any]) -> None:
    """Put the option's tensors into a member's buffers."""
    if options["revive"] == "none":
        return
    buffers["dead"] = torch.zeros(n_dict)
    buffers["aux_weight"] = torch.tensor(float(options["aux_weight"]))
    if options["revive"] == "aux_k":
        buffers["aux_k"] = torch.tensor(float(options["aux_k"]))


def loss(buffers: Tensors, scores: Tensor, residual: Tensor, atoms: Tensor) -> Tensor:
    """The term of the option that the buffers hold; z `scores` [B, n], x - y `residual` [B, d]."""
    if "aux_k" in buffers:
        return buffers["aux_weight"] * aux_k(buffers, scores, residual, atoms)
    return buffers["aux_weight"] * pre_act(buffers, scores)


def aux_k(buffers: Tensors, scores: Tensor, residual: Tensor, atoms: Tensor) -> Tensor:
    """mean (e^ - e)^2: the error e explained by the `aux_k` strongest dead features of a row.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.2.
    Deviation: e carries no gradient, so that the term moves dead features alone.
    """
    strength = torch.relu(scores) * buffers["dead"]
    explained = keep_largest(strength, buffers["aux_k"]) @ atoms
    error = (explained - residual.detach()).square().mean()
    return torch.where(buffers["dead"].any(), error, 0)


def pre_act(buffers: Tensors, scores: Tensor) -> Tensor:
    """mean_B sum over dead n of relu(-z): pulls silent features up to where they fire.

    Source: Conerly et al. 2025, "Dictionary Learning Optimization Techniques", the pre-activation
    loss. Deviations: on dead features alone, without the factor ||D||, threshold 0.
    """
    return (torch.relu(-scores) * buffers["dead"]).sum() / scores.shape[0]
