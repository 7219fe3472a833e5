"""The forms that the closed-form kernels know: what a signature's loss is made of.

With z = (x - a) E^T + b, c = select(relu(z)), r = c D^ - (x - a), where a is a centre (learned, a
buffer that stays, or none) and D^ has D's rows at unit norm, the total is

    mean over B and d of r^2 + l1 / B * sum c + bias_decay * ||b||

`select` keeps everything, the k largest of each row, or the B k largest of the batch. With
s = 2 / (B d) the gradients are

    dc  = (s r D^^T + l1 / B) * [c > 0]       dE   = dc^T (x - a)
    dD^ = s c^T r                             dD   = (dD^ - (dD^ . D^) D^) / ||D||
    db  = sum_B dc + bias_decay * b / ||b||   da   = s sum_B r - sum_B dc E

A tied member adds dE to dD^ before dD is taken.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.relu import Affine, Tied, TiedCentered, Untied
from ensemble_sae.signatures.topk import BatchTopK, TopK

Selection = Literal["all", "row", "batch"]


@dataclass(frozen=True)
class Form:
    """Which of the parts a signature has."""

    tied: bool = False
    centred: bool = False
    l1: bool = True
    decays_bias: bool = False
    selection: Selection = "all"

    @property
    def tensors(self) -> set[str]:
        """Names of the params and buffers that this form knows; others are other formulas."""
        options = {
            "encoder": not self.tied,
            "centre": self.centred,
            "l1": self.l1,
            "bias_decay": self.decays_bias,
            "k": self.selection != "all",
            "threshold": self.selection == "batch",
        }
        return {"decoder", "encoder_bias"} | {name for name, there in options.items() if there}


FORMS: dict[type[Any], Form] = {
    Untied: Form(decays_bias=True),
    Tied: Form(tied=True, decays_bias=True),
    TiedCentered: Form(tied=True, centred=True, decays_bias=True),
    Affine: Form(centred=True),
    TopK: Form(centred=True, l1=False, selection="row"),
    BatchTopK: Form(centred=True, l1=False, selection="batch"),
}


def form_of(signature: type[Any], tensors: Collection[str]) -> Form | None:
    """The form of a signature's members with these tensors; None where no closed form is known."""
    form = FORMS.get(signature)
    return form if form is not None and set(tensors) == form.tensors else None


def norms_of(decoder: Tensor) -> Tensor:
    """||D|| by row, `[K, n, d] -> [K, n]`; 1 where a row is zero, as in `parts.unit_rows`."""
    norms = torch.linalg.vector_norm(decoder, dim=-1)
    return norms.masked_fill_(norms == 0, 1)


def decay_of_bias(bias: Tensor, rate: Tensor, d_bias: Tensor) -> Tensor:
    """bias_decay * ||b||, `[K]`; its gradient is added to `d_bias` in place."""
    length = torch.linalg.vector_norm(bias, dim=1)
    d_bias.addcmul_(bias, torch.where(length > 0, rate / length, 0)[:, None])
    return rate * length


def centre_of(params: Tensors, buffers: Tensors) -> Tensor:
    """`[K, d]`, learned or not."""
    return params["centre"] if "centre" in params else buffers["centre"]
