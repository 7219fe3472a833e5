"""What a kind of sparse autoencoder is: pure functions over dicts of tensors.

One SAE is a pair of dicts `(params, buffers)`: what the optimiser moves, and what it does not.
A signature is a class of static functions over such pairs. It has no state and makes no modules,
so `torch.func.vmap` can map it over members that are stacked on a leading axis.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Loss(NamedTuple):
    """What `loss` returns: the scalar to descend, and scalars worth looking at, by name."""

    total: Tensor
    aux: Tensors


@runtime_checkable
class Signature(Protocol):
    """The whole of what a user must write for a new kind of SAE to train in an ensemble.

    `init(d_activation, n_dict, *, generator, **hyperparameters) -> (params, buffers)`
        Two dicts of tensors without an ensemble axis. The keyword-only arguments after
        `generator` are the signature's hyper-parameters: a sweep may set each of them, and those
        that differ between members must end up as scalar buffers (`{"l1": torch.tensor(l1)}`).
    `loss(params, buffers, batch) -> (total, aux)`
        `batch` `[B, d_activation]`; `total` a scalar; `aux` a dict of scalars. The names `mse`
        (mean squared error per element) and `l0` (mean active features per row) are shown live.

    The built-in signatures have more (see `Complete`); where a class lacks one of them, the
    feature that needs it is left out and says so.
    """

    @staticmethod
    def init(
        d_activation: int, n_dict: int, *, generator: torch.Generator
    ) -> tuple[Tensors, Tensors]: ...

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> tuple[Tensor, Tensors]: ...


@runtime_checkable
class Complete(Signature, Protocol):
    """A signature that can also be evaluated, loaded and exported, as all built-in ones can.

    `encode(params, buffers, batch)`      `[B, d] -> [B, n]`, the code
    `decode(params, buffers, code)`       `[B, n] -> [B, d]`, the reconstruction
    `dictionary(params, buffers)`         `[n, d]`, unit rows: the learned directions
    `project(params, buffers)`            params after an update, back inside their constraints
    """

    @staticmethod
    def encode(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor: ...

    @staticmethod
    def decode(params: Tensors, buffers: Tensors, code: Tensor) -> Tensor: ...

    @staticmethod
    def dictionary(params: Tensors, buffers: Tensors) -> Tensor: ...

    @staticmethod
    def project(params: Tensors, buffers: Tensors) -> Tensors: ...


def hyperparameters(signature: type[Any]) -> dict[str, Any]:
    """Name -> default of the signature's hyper-parameters (`inspect.Parameter.empty` = required).

    They are the keyword-only arguments of `init`, without `generator`.
    """
    arguments = inspect.signature(signature.init).parameters.values()
    return {
        a.name: a.default
        for a in arguments
        if a.kind is inspect.Parameter.KEYWORD_ONLY and a.name != "generator"
    }


def optional(signature: type[Any], name: str) -> Callable[..., Any] | None:
    """The signature's function of this name, or None where a user's class has none."""
    return getattr(signature, name, None)
