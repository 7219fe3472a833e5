"""Putting directions into a member: at its start, and where dead features begin again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.parts import unit_rows
from ensemble_sae.signatures.protocol import optional


def entered(signature: type[Any], params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
    """Rows as a member's features see them: centred, whitened: `[S, d] -> [S, w]`."""
    enter = optional(signature, "enter")
    return rows if enter is None else enter(params, buffers, rows)


def readers(signature: type[Any], params: Tensors, width: int) -> list[str]:
    """The matrices, apart from the decoder, whose rows read rows of `width`.

    They are the per-feature ones that fit, or those of them that the signature names (`READS`).
    """
    known = getattr(signature, "READS", getattr(signature, "FEATURES", ()))
    names = [n for n in known if n != "decoder" and n in params]
    wide = [n for n in names if params[n].dim() > 1]
    d_out = params["decoder"].shape[1]
    return [n for n in wide if params[n].shape[1] in (width, width - d_out)]


def start_at(signature: type[Any], params: Tensors, directions: Tensor) -> Tensors:
    """A member whose atoms and encoder start at `directions [n, w]`.

    Where w is wider than one side (a transcoder's rows are input and target side by side), the
    encoder takes the first columns and the decoder the last.
    """
    decoder = params["decoder"]
    moved = dict(params, decoder=_columns(directions, decoder, last=True))
    if "encoder" in readers(signature, params, directions.shape[1]):
        moved["encoder"] = _columns(directions, params["encoder"], last=False)
    return moved


def replant(
    signature: type[Any],
    params: Tensors,
    resets: Tensors,
    features: Tensor,
    directions: Tensor,
    alive: Tensor,
    scale: float,
) -> None:
    """Start some features of one member again, in place.

    D row := the direction at the mean norm of the alive decoder rows (in D^: unit norm); E row :=
    the direction at `scale` times the mean norm of the alive encoder rows; every number of a
    feature (bias, threshold) := its value at the start.

    Args:
        params: one member's, without a member axis; changed in place.
        resets: `[]` by name, for the params of one number per feature.
        features: `[m]` which; directions: `[m, w]`; alive: `[n]` bool.
    """
    decoder = params["decoder"]
    norm = torch.linalg.vector_norm(decoder[alive], dim=1).mean() if alive.any() else 1.0
    decoder[features] = norm * unit_rows(_columns(directions, decoder, last=True))
    for name in readers(signature, params, directions.shape[1]):
        weight = params[name]
        size = torch.linalg.vector_norm(weight[alive], dim=1).mean() if alive.any() else 1.0
        weight[features] = scale * size * unit_rows(_columns(directions, weight, last=False))
    for name, value in resets.items():
        params[name][features] = value


def _columns(directions: Tensor, like: Tensor, last: bool) -> Tensor:
    width = like.shape[1]
    part = directions[:, -width:] if last else directions[:, :width]
    return part.to(like)
