"""torchopt on stacked tensors.

The optimisers are elementwise, so one update of `[K, ...]` tensors is K updates; nothing is
vmapped. torchopt's own learning rate is one number for all, so it stays 1 and the ensemble scales
each member's update itself.

The step count lives in torchopt's state and really advances. In the code that this project grew
from it stayed at 0, which left Adam's bias correction stuck at its first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torchopt
from torch import Tensor
from torchopt.base import GradientTransformation

from ensemble_sae.signatures import Tensors


@dataclass(frozen=True)
class Adam:
    """Kingma & Ba 2015, algorithm 1: m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def transformation(self, device: torch.device) -> GradientTransformation:
        """torchopt's transformation, fused where this device has it; without a learning rate."""
        fused = torchopt.accelerated_op_available(device)
        make = (
            torchopt.transform.scale_by_accelerated_adam
            if fused
            else torchopt.transform.scale_by_adam
        )
        made = make(b1=self.betas[0], b2=self.betas[1], eps=self.eps)
        return GradientTransformation(lambda params: _exact_count(made.init(params)), made.update)


def _exact_count(state: Any) -> Any:
    """The step count as float64: torchopt corrects the bias in the precision of `beta ** count`.

    Of an integer that is float32, in which 1 - 0.999 has an error of 1e-5.
    """
    return state._replace(count={name: t.double() for name, t in state.count.items()})


def flatten(state: Any) -> Tensors:
    """A state of named fields of dicts -> `{"mu/encoder": ..., "count/encoder": ...}`."""
    return {
        f"{field}/{name}": tensor
        for field, tree in zip(state._fields, state, strict=True)
        for name, tensor in tree.items()
    }


def unflatten(like: Any, tensors: Tensors) -> Any:
    """The inverse of `flatten`, in the structure of `like`."""
    fields = {
        field: {name: tensors[f"{field}/{name}"] for name in tree}
        for field, tree in zip(like._fields, like, strict=True)
    }
    return type(like)(**fields)


def join(states: list[Any]) -> Tensors:
    """The states of consecutive slices -> one flat dict with members on axis 0.

    Scalars (the step count) are the same in every slice and are kept once.
    """
    flat = [flatten(state) for state in states]
    return {name: _join([part[name] for part in flat]) for name in flat[0]}


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if parts[0].dim() == 0 else torch.cat(parts)
