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
from torch import Tensor
from torch.optim.adam import adam
from torchopt.base import GradientTransformation
from torchopt.transform.scale_by_adam import ScaleByAdamState

from ensemble_sae.signatures import Tensors
from ensemble_sae.train.kept import Kept


@dataclass(frozen=True)
class Adam:
    """Kingma & Ba 2015, algorithm 1: m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def transformation(self, device: torch.device) -> GradientTransformation:
        """torchopt's `scale_by_adam` through torch's fused kernel; without a learning rate.

        One pass over each tensor, where torchopt's own fused operator takes three to five times as
        long. An update's result is valid until the next update.
        """
        kept = Kept()

        def update(
            updates: Tensors, state: Any, *, params: Tensors | None = None, inplace: bool = True
        ) -> tuple[Tensors, Any]:
            if not inplace:
                state = state._replace(mu=_clones(state.mu), nu=_clones(state.nu))
            moved = {name: kept.array(name, g).zero_() for name, g in updates.items()}
            adam(
                list(moved.values()),
                [updates[name] for name in moved],
                [state.mu[name] for name in moved],
                [state.nu[name] for name in moved],
                [],
                [state.count[name].float() for name in moved],  # adam adds one to these copies
                fused=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=-1.0,  # what zeros become is the update itself, uphill as torchopt has it
                weight_decay=0.0,
                eps=self.eps,
                maximize=False,
            )
            return moved, state._replace(count={name: n + 1 for name, n in state.count.items()})

        return GradientTransformation(_adam_state, update)


def _adam_state(params: Tensors) -> Any:
    """Zero moments; the step counts are float64 scalars."""
    counts = {name: t.new_zeros((), dtype=torch.float64) for name, t in params.items()}
    return ScaleByAdamState(mu=_zeros(params), nu=_zeros(params), count=counts)


def _zeros(tensors: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def _clones(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


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
