"""What a gradient and an update must heed: norms, directions, the signature's own constraints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.train import stacking


def clip(gradients: Tensors, norms: Tensor, largest: Tensor) -> None:
    """Scale each member's gradient, of norm `norms [k]`, so that it is at most `largest [k]`."""
    factors = torch.where(norms > largest, largest / norms, 1.0)
    for tensor in gradients.values():
        tensor.mul_(stacking.per_member(factors, tensor))


def remove_parallel(gradients: Tensors, params: Tensors, chosen: Tensor) -> None:
    """Take from each decoder row's gradient its part along the row, for `chosen [k]` members.

    g <- g - (g . D^) D^, so that an update turns a row and does not stretch it (Bricken et al.
    2023, "Towards Monosemanticity", appendix on training).
    """
    decoder, gradient = params["decoder"], gradients["decoder"]
    norms = torch.linalg.vector_norm(decoder, dim=-1, keepdim=True)
    unit = decoder / torch.where(norms > 0, norms, 1)
    along = (gradient * unit).sum(-1, keepdim=True)
    along *= stacking.per_member(chosen.to(along), along)
    gradient.addcmul_(along, unit, value=-1)


def projection(
    signature: type[Any], params: Tensors, buffers: Tensors
) -> Callable[..., Tensors] | None:
    """The signature's `project`, unless it gives back what it is given: then there is no work."""
    project = optional(signature, "project")
    if project is None:
        return None
    member, own = ({name: t[0] for name, t in tensors.items()} for tensors in (params, buffers))
    projected = project(dict(member), own)
    return None if all(projected[name] is member[name] for name in projected) else project


def projected(signature: type[Any], params: Tensors, buffers: Tensors) -> Tensors:
    """Stacked params back inside their constraints; as they are where there are none."""
    project = optional(signature, "project")
    return params if project is None else vmap(project)(params, buffers)
