"""Which kernels the members of a task may take, and how dense their codes are.

Before training only the density of `topk` and `batchtopk` is known, k / n. Members that an l1 makes
sparse begin dense, and change their kernel when few features are active, if they ever do: they have
two stacks here, that of the first steps and that of the last ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemble_sae.dispatch.cost import Stack, Way, member_flop
from ensemble_sae.kernels.choice import ABOVE, BELOW, Kernel
from ensemble_sae.kernels.forms import FORMS, Form
from ensemble_sae.signatures import resolve
from ensemble_sae.sweep import Group, Member

FEW = 0.02  # density that is assumed of members that an l1 has made sparse
HALF = 0.5  # of scores around zero are positive: before an l1 does anything


def stacks_of(
    group: Group,
    members: Sequence[Member],
    *,
    rows: int,
    parameters: int,
    kernel: Kernel,
    kind: str,
    is_adam: bool = True,
    largest: bool = False,
) -> list[list[Stack]]:
    """The stacks that some members of a group are: each as it begins, and what it may become.

    Args:
        rows: of a batch. parameters: of one member.
        largest: with the densities that take the most memory, not those that are likely.
    """
    first = members[0]
    width = max(first.d_activation, first.d_target)
    flop = member_flop(first, rows, group.n_dict)
    writes = not is_adam or any(member.grad_clip is not None for member in members)

    def stack(count: int, way: Way, density: float = 1.0) -> Stack:
        return Stack(count, rows, group.n_dict, width, flop, parameters, way, density, kind, writes)

    form = _form(first)
    if form is None or kernel == "generic":
        return [[stack(len(members), "generic")]]
    if kernel == "dense" or (kernel == "auto" and kind != "cpu"):
        return [[stack(len(members), "dense")]]
    if form.selection == "all":
        begin, end = HALF if kernel == "sparse" else 1.0, ABOVE if largest else FEW
        begin_way: Way = "sparse" if kernel == "sparse" else "dense"
        return [[stack(len(members), begin_way, begin), stack(len(members), "sparse", end)]]
    shares = [_share(member) for member in members]
    sparse = [share for share in shares if kernel == "sparse" or share <= BELOW]
    found = []
    if sparse:
        found.append([stack(len(sparse), "sparse", sum(sparse) / len(sparse))])
    if len(sparse) < len(shares):
        found.append([stack(len(shares) - len(sparse), "dense")])
    return found


def _form(member: Member) -> Form | None:
    """The closed form of a member, as its options tell; None where none is known."""
    signature = resolve(member.signature)
    form = FORMS.get(signature)
    if form is None:
        return None
    options: dict[str, Any] = getattr(signature, "OPTIONS", {})
    chosen = {**options, **member.hyperparameters}
    same = all(chosen[name] == value for name, value in options.items() if name in _TENSORS)
    return form if same and form.centred == (chosen.get("centring") != "none") else None


_TENSORS = {"input_relu", "whitening", "decoder_bias", "unit_norm", "revive"}  # they bring others


def _share(member: Member) -> float:
    """Active features of a `topk` member, as a share."""
    k = member.hyperparameters.get("k", 32.0)
    assert isinstance(k, int | float)
    return min(1.0, k / member.n_dict)
