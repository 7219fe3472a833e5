"""A step without gradients in memory: where nothing stands between them and Adam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from ensemble_sae.kernels.gradients import Found
from ensemble_sae.kernels.sparse import SparsePass
from ensemble_sae.signatures import Tensors
from ensemble_sae.train import stacking
from ensemble_sae.train.optimiser import Optimiser


def updates_itself(found: Found) -> SparsePass | None:
    """What was found, if its kernel can update by itself and no gradient can be infinite."""
    return found if isinstance(found, SparsePass) and found.is_tame else None


def descend(
    found: SparsePass,
    params: Tensors,
    state: Any,
    optimiser: Optimiser,
    transformation: GradientTransformation,
    rates: Tensor,
) -> Any:
    """Update the params in place and return the optimiser's new state.

    The weights are moved by the kernel, what is left by the transformation; both are Adam.

    Args:
        rates: what updates are multiplied by, `[K]`.
    """
    weights = params.keys() - found.vectors.keys()
    steps = {name: state.count[name] + 1 for name in weights}
    count = float(next(iter(steps.values())))
    found.descend(_scalars(optimiser, rates, count), state.mu, state.nu)
    rest = {name: params[name] for name in found.vectors}
    updates, moved = transformation.update(
        found.vectors, _only(state, rest.keys()), params=rest, inplace=True
    )
    for name, tensor in rest.items():
        tensor.addcmul_(updates[name], stacking.per_member(rates, tensor))
    return state._replace(count={name: (moved.count | steps)[name] for name in state.count})


def _scalars(optimiser: Optimiser, rates: Tensor, count: float) -> Tensor:
    """`[K, 8]`, in the order of `kernels/layout.py`."""
    beta1, beta2 = optimiser.betas
    one, two = 1 / (1 - beta1**count), (1 - beta2**count) ** -0.5
    same = [1 - beta1, beta2, 1 - beta2, one, two, optimiser.eps, optimiser.decay]
    return torch.cat([rates[:, None], rates.new_tensor([same]).expand(len(rates), -1)], dim=1)


def _only(state: Any, names: Any) -> Any:
    return type(state)(*({name: tree[name] for name in names} for tree in state))
