"""Which members of a signature that pads share a stack, though their sizes differ.

A padded feature costs as much arithmetic as a real one; a stack more costs a fixed time per step,
here in the FLOP that the device would do meanwhile. Sizes are joined from the largest down, as
long as the padding of a size costs less than a stack of its own.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ensemble_sae.dispatch.cost import member_flop
from ensemble_sae.signatures import resolve
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.sweep import Member
from ensemble_sae.sweep.groups import structure

# One more stack's step: about 1.3 ms of a CPU core (benchmarks/padding.py). For a GPU it is a
# guess from launch times, not measured.
STACK_FLOP = {"cpu": 8e7, "cuda": 4e10}


def padded_sizes(members: list[Member], batch_size: int, kind: str) -> dict[int, int]:
    """Member id -> features of its stack, for the members that are padded."""
    stacks: dict[tuple[Any, ...], list[Member]] = defaultdict(list)
    for member in members:
        if optional(resolve(member.signature), "pad"):
            stacks[member.hook, member.signature, structure(member)].append(member)
    found: dict[int, int] = {}
    for same in stacks.values():
        found |= _joined(same, batch_size, STACK_FLOP.get(kind, STACK_FLOP["cuda"]))
    return found


def _joined(members: list[Member], batch_size: int, stack_flop: float) -> dict[int, int]:
    by_size: dict[int, list[Member]] = defaultdict(list)
    for member in members:
        by_size[member.n_dict].append(member)
    sizes = sorted(by_size, reverse=True)
    found: dict[int, int] = {}
    largest = sizes[0]
    for size in sizes[1:]:
        padding = sum(member_flop(m, batch_size) * (largest / size - 1) for m in by_size[size])
        if padding < stack_flop:
            found |= {member.id: largest for member in by_size[size]}
        else:
            largest = size
    return found
