"""torchopt on stacked tensors.

The optimisers are elementwise, so one update of `[K, ...]` tensors is K updates; nothing is
vmapped. torchopt's own learning rate is one number for all, so it stays 1 and the ensemble scales
each member's update itself.

The step count lives in torchopt's state and really advances. In the code that this project grew
from it stayed at 0, which left Adam's bias correction stuck at its first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torchopt
from torch import Tensor
from torch.optim.adam import adam
from torchopt.base import GradientTransformation
from torchopt.transform.scale_by_adam import ScaleByAdamState
from torchopt.transform.trace import TraceState

from ensemble_sae.kernels.kept import Kept
from ensemble_sae.signatures import Tensors

Kind = Literal["adam", "adamw", "radam", "rmsprop", "sgd"]


@dataclass(frozen=True)
class Optimiser:
    """How gradients become updates, before each member's learning rate.

    adam     Kingma & Ba 2015, algorithm 1: m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
    adamw    the same plus `weight_decay` * p (Loshchilov & Hutter 2019, algorithm 2)
    radam    Liu et al. 2020, algorithm 2
    rmsprop  g / (sqrt(v) + eps), v <- beta2 v + (1 - beta2) g^2 (Hinton's lecture 6e)
    sgd      a running sum: u <- `momentum` u + g

    Deviations: adamw's decay is multiplied by the learning rate too; radam rectifies from
    rho > 5 on, as its authors' code does, and adds eps to sqrt(v); rmsprop's decay is `betas[1]`,
    as Adam's second one.
    """

    kind: Kind = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.9

    @property
    def is_adam(self) -> bool:
        """Whether updates are Adam's, with a decay or without."""
        return self.kind in ("adam", "adamw")

    @property
    def decay(self) -> float:
        """The decay that is in an update."""
        return self.weight_decay if self.kind == "adamw" else 0.0

    def transformation(self, device: torch.device) -> GradientTransformation:
        """The torchopt transformation, without a learning rate."""
        transform = torchopt.transform
        if self.kind == "radam":
            return transform.scale_by_radam(b1=self.betas[0], b2=self.betas[1], eps=self.eps)
        if self.kind == "rmsprop":
            return transform.scale_by_rms(alpha=self.betas[1], eps=self.eps)
        if self.kind == "sgd":
            return _running_sum(self.momentum)
        return _fused_adam(self.betas, self.eps, self.decay)


def _fused_adam(
    betas: tuple[float, float], eps: float, weight_decay: float
) -> GradientTransformation:
    """torchopt's `scale_by_adam` through torch's fused kernel; adamw with a weight decay.

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
            beta1=betas[0],
            beta2=betas[1],
            lr=-1.0,  # what zeros become is the update itself, uphill as torchopt has it
            weight_decay=0.0,
            eps=eps,
            maximize=False,
        )
        if weight_decay and params is not None:
            for name, tensor in moved.items():
                tensor.add_(params[name], alpha=weight_decay)
        return moved, state._replace(count={name: n + 1 for name, n in state.count.items()})

    return GradientTransformation(_adam_state, update)


def _running_sum(momentum: float) -> GradientTransformation:
    """torchopt's `trace`, which leaves the momentum out of the first update it is asked for: also
    of the first one after a state was loaded. Here what an update does is told by the state alone.
    """

    def update(
        updates: Tensors, state: Any, *, params: Tensors | None = None, inplace: bool = True
    ) -> tuple[Tensors, Any]:
        trace = state.trace if inplace else _clones(state.trace)
        for name, gradient in updates.items():
            trace[name].mul_(momentum).add_(gradient)
        return _clones(trace), TraceState(trace=trace)  # what is returned may be changed in place

    return GradientTransformation(lambda params: TraceState(trace=_zeros(params)), update)


def _adam_state(params: Tensors) -> Any:
    """Zero moments; the step counts are float64 scalars."""
    counts = {name: t.new_zeros((), dtype=torch.float64) for name, t in params.items()}
    return ScaleByAdamState(mu=_zeros(params), nu=_zeros(params), count=counts)


def forget(state: Any, member: int, features: Tensor, names: tuple[str, ...]) -> None:
    """Zero what a state remembers of some features `[m]` of a member: rows of all its moments."""
    for tree in state:
        if isinstance(tree, dict):
            for name in names:
                if name in tree and tree[name].dim() > 1:
                    tree[name][member, features] = 0


def _zeros(tensors: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def _clones(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def flatten(state: Any) -> Tensors:
    """A state of named fields -> `{"mu/encoder": ..., "count/encoder": ..., "t": ...}`."""
    flat: Tensors = {}
    for field, tree in zip(state._fields, state, strict=True):
        if isinstance(tree, dict):
            flat |= {f"{field}/{name}": tensor for name, tensor in tree.items()}
        else:
            flat[field] = torch.tensor(tree)  # a count of torchopt's that is no tensor
    return flat


def unflatten(like: Any, tensors: Tensors) -> Any:
    """The inverse of `flatten`, in the structure of `like`."""
    fields = {
        field: {name: tensors[f"{field}/{name}"] for name in tree}
        if isinstance(tree, dict)
        else type(tree)(tensors[field].item())
        for field, tree in zip(like._fields, like, strict=True)
    }
    return type(like)(**fields)


def cut(like: Any, stored: Tensors, start: int, stop: int) -> Any:
    """Members `start..stop` of a flat state, copied into the structure of `like`."""
    part = {name: (t if t.dim() == 0 else t[start:stop]).clone() for name, t in stored.items()}
    return unflatten(like, part)


def join(states: list[Any]) -> Tensors:
    """The states of consecutive slices -> one flat dict with members on axis 0.

    Scalars (the step count) are the same in every slice and are kept once.
    """
    flat = [flatten(state) for state in states]
    return {name: _join([part[name] for part in flat]) for name in flat[0]}


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if parts[0].dim() == 0 else torch.cat(parts)
