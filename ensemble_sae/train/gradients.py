"""The gradient of a stack of members on one shared batch, for any signature.

A signature with a closed form (`train/closed_form.py`) has a faster way to the same numbers;
`train/kernels.py` picks.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.func import grad_and_value, vmap

from ensemble_sae.signatures import Tensors


class Gradients(NamedTuple):
    """For a stack of K members: d total / d params, the totals `[K]`, and scalars by name `[K]`."""

    params: Tensors
    total: Tensor
    aux: Tensors


class GradientFunction(Protocol):
    """`(params, buffers, batch) -> Gradients`. The result is valid until the next call."""

    def __call__(self, params: Tensors, buffers: Tensors, batch: Tensor) -> Gradients: ...


def mapped(signature: type[Any]) -> GradientFunction:
    """vmap over members of the gradient of the signature's loss; the batch is shared."""
    gradient = vmap(
        grad_and_value(lambda p, b, x: tuple(signature.loss(p, b, x)), has_aux=True),
        in_dims=(0, 0, None),
        randomness="error",
    )

    def function(params: Tensors, buffers: Tensors, batch: Tensor) -> Gradients:
        gradients, (total, aux) = gradient(params, buffers, batch)
        return Gradients(gradients, total.detach(), {k: v.detach() for k, v in aux.items()})

    return function
