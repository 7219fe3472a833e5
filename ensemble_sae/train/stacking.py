"""Members side by side: dicts of tensors with a leading member axis, and back.

A *slice* is a contiguous range of members of a stack, as views that share its memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.signatures import Tensors


def stack(members: Sequence[Tensors]) -> Tensors:
    """`K` dicts of equal names and shapes -> one dict of tensors `[K, ...]`.

    Raises:
        UserError: names, shapes or dtypes differ; names the member and the tensor.
    """
    first = members[0]
    for index, member in enumerate(members):
        if member.keys() != first.keys():
            raise UserError(
                "Members of one ensemble must have the same tensors.",
                where=f"member {index}",
                found=", ".join(member),
                allowed=", ".join(first),
            )
        for name, tensor in member.items():
            if tensor.shape != first[name].shape or tensor.dtype != first[name].dtype:
                raise UserError(
                    "Members of one ensemble must have the same shapes.",
                    where=f"member {index}, tensor {name!r}",
                    found=f"{list(tensor.shape)} {tensor.dtype}",
                    allowed=f"{list(first[name].shape)} {first[name].dtype}",
                    next_step="put members of another shape into an ensemble of their own",
                )
    return {name: torch.stack([member[name] for member in members]) for name in first}


def unstack(stacked: Tensors, members: int) -> list[Tensors]:
    """A stack `[K, ...]` -> `K` dicts that share its memory; the stack may be empty of tensors."""
    return [{name: t[k] for name, t in stacked.items()} for k in range(members)]


def slice_of(stacked: Tensors, start: int, stop: int) -> Tensors:
    """Members `start..stop` of a stack, as views."""
    return {name: tensor[start:stop] for name, tensor in stacked.items()}


def members_in(stacked: Tensors) -> int:
    """The number of members `K` of a stack."""
    return next(iter(stacked.values())).shape[0]


def per_member(values: Tensor, like: Tensor) -> Tensor:
    """`[K] -> [K, 1, ..., 1]`, to broadcast one number per member against `like [K, ...]`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def member_norms(stacked: Tensors) -> Tensor:
    """L2 norm over all tensors of each member, `[K]`; not finite if any element is not.

    Summed by name, so that the bits do not depend on the order that a file has.
    """
    squares = [
        torch.linalg.vector_norm(tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None], dim=1)
        for _, tensor in sorted(stacked.items())
    ]
    return torch.linalg.vector_norm(torch.stack(squares), dim=0)


def where_alive(alive: Tensor | None, moved: Tensor, still: Tensor) -> Tensor:
    """`moved` for living members, `still` for the others; all live where `alive` is None."""
    return moved if alive is None else torch.where(per_member(alive, moved), moved, still)


def zero_unless(alive: Tensor, stacked: Tensors) -> Tensors:
    """The same values for living members, zeros for the others (a product would keep NaN)."""
    return {
        name: torch.where(per_member(alive, tensor), tensor, 0) for name, tensor in stacked.items()
    }


def under(group: str, state: Tensors) -> Tensors:
    """The tensors whose names begin with `group/`, which is cut off."""
    prefix = f"{group}/"
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
