"""Dictionaries that no gradient trains, as signatures: what a baseline's `Sae` is made of.

Each has params `decoder [n, d]` (D; the dictionary is its unit rows) and, where it says so, more.
A buffer `centre [d]` is taken off rows before they are encoded and added after they are decoded;
a buffer `input_floor []` sets what is negative in a row to zero first. See `signatures/frame.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ensemble_sae.baselines import pursuit
from ensemble_sae.data.units import Units
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures import Tensors, frame
from ensemble_sae.signatures.parts import affine, unit_rows
from ensemble_sae.sweep.member import Member, Value


class FixedDictionary:
    """Decodes linearly, y = c D^ with D^ the unit rows of D; a subclass says what its code is."""

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
        """c of rows that are centred: `[B, d] -> [B, n]`."""
        raise NotImplementedError

    @classmethod
    def encode(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return cls.code(params, buffers, frame.enter(params, buffers, batch))

    @classmethod
    def decode(cls, params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return frame.leave(params, buffers, code @ unit_rows(params["decoder"]))

    @classmethod
    def dictionary(cls, params: Tensors, buffers: Tensors) -> Tensor:
        return unit_rows(params["decoder"])


class Projection(FixedDictionary):
    """c = x E^T, signed. Params: `encoder [n, d]` (E)."""

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
        return rows @ params["encoder"].mT


class Filters(Projection):
    """c = x E^T, y = c D, where what is read is the direction: the dictionary is E's unit rows.

    D's rows have the lengths that undo the encoder.
    """

    @classmethod
    def decode(cls, params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return frame.leave(params, buffers, code @ params["decoder"])

    @classmethod
    def dictionary(cls, params: Tensors, buffers: Tensors) -> Tensor:
        return unit_rows(params["encoder"])


class Rectified(FixedDictionary):
    """c = relu(x D^^T + b). Params: `encoder_bias [n]` (b)."""

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
        return torch.relu(affine(rows, unit_rows(params["decoder"]), params["encoder_bias"]))


class Assignment(FixedDictionary):
    """c_i = ||D_i|| for the one centre D_i that is closest to x, else 0: y is that centre.

    Closest by Euclidean distance; with a buffer `cosine []`, by the angle. A centre of zeros has a
    code and an atom of zeros.
    """

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
        centres = params["decoder"]
        if "cosine" in buffers:
            nearness = rows @ unit_rows(centres).mT
        else:  # -||x - D_i||^2 / 2, but for ||x||^2, which all centres share
            nearness = rows @ centres.mT - centres.square().sum(1) / 2
        nearest = nearness.argmax(1, keepdim=True)
        lengths = torch.linalg.vector_norm(centres, dim=1)
        return torch.zeros_like(nearness).scatter_(1, nearest, lengths[nearest])


class ByOmp(FixedDictionary):
    """c by orthogonal matching pursuit. Buffers: `k []`."""

    NONNEGATIVE = False

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
        return pursuit.omp(
            rows, unit_rows(params["decoder"]), int(buffers["k"]), nonnegative=cls.NONNEGATIVE
        )


class ByNonnegativeOmp(ByOmp):
    """c by orthogonal matching pursuit, nowhere negative. Buffers: `k []`."""

    NONNEGATIVE = True


class ByFista(FixedDictionary):
    """c >= 0 by FISTA. Buffers: `l1 []`, `iterations []`."""

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
        l1, iterations = float(buffers["l1"]), int(buffers["iterations"])
        return pursuit.fista(rows, unit_rows(params["decoder"]), l1, iterations)


class ByTopK(FixedDictionary):
    """c = relu(x D^^T) at its k largest. Buffers: `k []`."""

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
        return pursuit.top_k(rows, unit_rows(params["decoder"]), int(buffers["k"]))


PURSUITS: dict[str, tuple[type[FixedDictionary], dict[str, float]]] = {
    "omp": (ByOmp, {"k": 8}),
    "omp_nonnegative": (ByNonnegativeOmp, {"k": 8}),
    "fista": (ByFista, {"l1": 0.1, "iterations": 100}),
    "top_k": (ByTopK, {"k": 8}),
}


def pursued(dictionary: Tensor, method: str, *, seed: int = 0, **numbers: float) -> Sae:
    """Any dictionary with a code by pursuit: what its atoms are worth without their encoder.

    Args:
        dictionary: rows `[n, d]`, of any length but zero.
        method: omp, omp_nonnegative, fista or top_k: see `baselines.pursuit`.
        numbers: k (default 8); of fista l1 (0.1) and iterations (100).

    Raises:
        UserError: an unknown method, or a number that it does not take.
    """
    if method not in PURSUITS:
        raise UserError(
            "Unknown pursuit.", where="method", found=method, allowed=nearest(method, PURSUITS)
        )
    signature, defaults = PURSUITS[method]
    for name in numbers:
        if name not in defaults:
            raise UserError(
                f"{method} takes no such number.", found=name, allowed=nearest(name, defaults)
            )
    options = defaults | numbers
    device = dictionary.device
    buffers = {name: torch.tensor(value, device=device) for name, value in options.items()}
    params = {"decoder": unit_rows(dictionary)}
    return as_sae(method, signature, params, buffers, seed=seed, options=options)


def as_sae(
    name: str,
    signature: type,
    params: Tensors,
    buffers: Tensors,
    *,
    seed: int,
    options: Mapping[str, Value],
) -> Sae:
    """An `Sae` of a baseline: n and d are those of `decoder`, the options its hyper-parameters."""
    n_dict, d = params["decoder"].shape
    member = Member(
        id=-1,
        name=name,
        signature=name,
        hook="",
        d_activation=d,
        n_dict=n_dict,
        dict_ratio=n_dict / d,
        lr=0.0,
        grad_clip=None,
        seed=seed,
        hyperparameters=dict(options),
    )
    return Sae(member, signature, params, buffers, Units())
