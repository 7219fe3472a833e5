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
        `generator` are the signature's hyper-parameters: a sweep may set each of them. One whose
        default is a float may differ between the members of a stack and must end up as a scalar
        buffer (`{"l1": torch.tensor(l1)}`); one whose default is a bool, a whole number or a
        text is structure, and members that differ in it go into stacks of their own. An argument
        `widths` is given the widths of the hook points whose rows are joined.
    `loss(params, buffers, batch) -> (total, aux)`
        `batch` `[B, d_activation]`; `total` a scalar; `aux` a dict of scalars. The names `mse`
        (mean squared error per element) and `l0` (mean active features per row) are shown live.
        `fired` `[n]` (rows on which each feature is active) is what resampling and freezing read;
        `buffers/NAME` is the value that the buffer NAME takes after the step.

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

    Optional beside them:

    `target(params, buffers, batch)`      what `decode` is compared with, where not the batch
    `fit(params, buffers, rows)`          params and buffers that begin from a sample of rows
    `pad(params, buffers, n_dict)`        the same member with `n_dict` features: see `masked`
    `cut(params, buffers, n_dict)`        the inverse of `pad`
    `limits(d_activation, n_dict)`        name -> Limit of hyper-parameters that depend on shapes
    `products(hyperparameters)`           matrix products of 2 B n d FLOP in a step (default 5)
    `FEATURES`                            names of the params whose axis 0 is the feature
    `READS`                               those of them that read rows; default: all that fit
    `OPTIONS`                             further hyper-parameters and their defaults
    `DRAWS`                               name -> "normal" | "uniform": random numbers `[B, n]` that
                                          the ensemble draws anew for every step: `draw/NAME`
    `TAKES_TARGET`, `LEAST_POINTS`        what its hook must be: "A -> B"; so many points

    A buffer `dead` `[n]` is kept at 1 for features that have not fired for a while, a buffer
    `step` `[]` at the number of updates made.
    """

    @staticmethod
    def encode(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor: ...

    @staticmethod
    def decode(params: Tensors, buffers: Tensors, code: Tensor) -> Tensor: ...

    @staticmethod
    def dictionary(params: Tensors, buffers: Tensors) -> Tensor: ...

    @staticmethod
    def project(params: Tensors, buffers: Tensors) -> Tensors: ...


GIVEN = ("generator", "widths")  # arguments of `init` that are no hyper-parameters


def arguments(signature: type[Any]) -> dict[str, Any]:
    """Name -> default of the keyword-only arguments of `init`."""
    return {
        a.name: a.default
        for a in inspect.signature(signature.init).parameters.values()
        if a.kind is inspect.Parameter.KEYWORD_ONLY
    }


def hyperparameters(signature: type[Any]) -> dict[str, Any]:
    """Name -> default of the signature's hyper-parameters (`inspect.Parameter.empty` = required).

    They are the keyword-only arguments of `init` but for those that are given, and the options.
    """
    own = {k: default for k, default in arguments(signature).items() if k not in GIVEN}
    return own | getattr(signature, "OPTIONS", {})


def optional(signature: type[Any], name: str) -> Callable[..., Any] | None:
    """The signature's function of this name, or None where a user's class has none."""
    return getattr(signature, name, None)
