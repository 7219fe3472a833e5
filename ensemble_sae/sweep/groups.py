"""Members of one shape: what can be stacked."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

from ensemble_sae.signatures import hyperparameters, resolve
from ensemble_sae.sweep.member import Group, Member


def groups_of(
    members: list[Member],
    places: Mapping[int, Hashable] | None = None,
    sizes: Mapping[int, int] | None = None,
) -> list[Group]:
    """Members by hook, signature, structure and size, in order of first appearance.

    Args:
        places: member id -> where in the schedule it is; those at different places stay apart.
        sizes: member id -> features it is padded to, where those are not its own.
    """
    several_hooks = len({m.hook for m in members}) > 1
    found: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        place = places[member.id] if places else None
        size = (sizes or {}).get(member.id, member.n_dict)
        key = (member.hook, member.signature, size, structure(member), place)
        found.setdefault(key, []).append(member)
    groups, taken = [], set()
    for (hook, signature, n_dict, _, _), same in found.items():
        name = _group_name(signature, n_dict, hook if several_hooks else None)
        name = name if name not in taken else f"{name}-m{same[0].id}"
        taken.add(name)
        groups.append(Group(name, signature, hook, same[0].d_activation, n_dict, tuple(same)))
    return groups


def structure(member: Member) -> tuple[tuple[str, Any], ...]:
    """The hyper-parameters that shape a member's tensors: those whose default is no float.

    Members of one stack agree in them; numbers with a fraction are buffers and may differ.
    """
    defaults = hyperparameters(resolve(member.signature))
    return tuple(
        (name, value)
        for name, value in member.hyperparameters.items()
        if type(defaults.get(name)) in (bool, int, str)
    )


def _group_name(signature: str, n_dict: int, hook: str | None) -> str:
    words = [signature.rpartition(":")[2], f"n{n_dict}", *([hook] if hook else [])]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(words))
