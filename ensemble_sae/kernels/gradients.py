"""The gradient of a stack of members on one shared batch, for any signature."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.func import grad_and_value, vmap

from ensemble_sae.kernels.precision import Precision, products
from ensemble_sae.signatures import Tensors


class Found(Protocol):
    """For a stack of K members: d total / d params, the totals `[K]`, and what a step reports."""

    @property
    def params(self) -> Tensors: ...
    @property
    def total(self) -> Tensor: ...
    @property
    def aux(self) -> Tensors: ...


class Gradients(NamedTuple):
    """What was found, with the gradients in memory."""

    params: Tensors
    total: Tensor
    aux: Tensors


class GradientFunction(Protocol):
    """`(params, buffers, batch) -> Found`. The result is valid until the next call."""

    def __call__(self, params: Tensors, buffers: Tensors, batch: Tensor) -> Found: ...


def mapped(signature: type[Any], precision: Precision = "fp32") -> GradientFunction:
    """vmap over members of the gradient of the signature's loss; the batch is shared."""
    gradient = vmap(
        grad_and_value(lambda p, b, x: tuple(signature.loss(p, b, x)), has_aux=True),
        in_dims=(0, 0, None),
        randomness="error",
    )

    def function(params: Tensors, buffers: Tensors, batch: Tensor) -> Gradients:
        with products(precision, batch.device):
            gradients, (total, aux) = gradient(params, buffers, batch)
        return Gradients(gradients, total.detach(), {k: v.detach() for k, v in aux.items()})

    return function
