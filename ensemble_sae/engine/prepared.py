"""A sweep made ready: members, groups, plan. What a dry run shows and what a run executes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ensemble_sae.data.hooks import Hook
from ensemble_sae.dispatch.cost import member_flop
from ensemble_sae.dispatch.devices import Device
from ensemble_sae.dispatch.initial import initial
from ensemble_sae.dispatch.padding import padded_sizes
from ensemble_sae.dispatch.planner import Plan, plan
from ensemble_sae.engine.fitting import refuse_singular
from ensemble_sae.engine.stores import Sources, rows_of
from ensemble_sae.kernels.precision import refuse_unknown
from ensemble_sae.run import Checkpoint
from ensemble_sae.sweep import Group, Member, Sweep, expand, groups_of


@dataclass(frozen=True)
class Prepared:
    """Everything that is known of a sweep before its first step."""

    sweep: Sweep
    sources: Sources
    members: list[Member]
    groups: list[Group]
    sizes: dict[int, int]  # member id -> features of its stack, for those that are padded
    plan: Plan

    @property
    def hooks(self) -> set[str]:
        """The hooks that some member trains on: points, and expressions over them."""
        return {member.hook for member in self.members}

    @property
    def whole_groups(self) -> list[Group]:
        """The groups, also of members that an interruption left at different places."""
        return groups_of(self.members, sizes=self.sizes)

    @property
    def flop_per_row(self) -> float:
        """FLOP that one row costs, over all members."""
        return sum(member_flop(member, 1) for member in self.members)


def prepare(
    sweep: Sweep, where: str, sources: Sources, devices: list[Device], resume: Checkpoint | None
) -> Prepared:
    """Expand, group and plan a sweep.

    Members that an interruption left at different places go into groups of their own.

    Raises:
        UserError: a bad member, or one that fits on no device; a precision that a device does not
            have; stores that are there but cannot be joined, or whitened, as a member asks.
    """
    for kind in {device.kind for device in devices}:
        refuse_unknown(sweep.train.precision, kind)
    members = expand(sweep, sources.widths, where)
    places = {m.id: resume.part_of(m.id).position for m in members} if resume else None
    if resume:
        sizes = {m.id: size for m in members if (size := resume.padded_to(m.id))}
    else:
        sizes = padded_sizes(members, sweep.train.batch_size, devices[0].kind)
    groups = groups_of(members, places, sizes)
    parameters = {group.name: _parameters(group) for group in groups}
    hooks = {member.hook for member in members}
    made = plan(
        groups,
        devices,
        batch_size=sweep.train.batch_size,
        parameters=parameters,
        chunk_bytes=_chunk_bytes(sources, hooks),
        joined_bytes=_chunk_bytes(sources, {h for h in hooks if len(Hook.parse(h).points) > 1}),
        kernel=sweep.train.kernel,
        is_adam=sweep.train.optimiser in ("adam", "adamw"),
    )
    if sources.there and resume is None:
        refuse_singular(sweep, where, sources, members)
    return Prepared(sweep, sources, members, groups, sizes, made)


def _parameters(group: Group) -> int:
    """Parameters of the largest member, counted on tensors without memory."""
    member = max(group.members, key=lambda m: m.n_dict)
    with torch.device("meta"):
        try:
            params, _ = initial(member, 0)
        except (RuntimeError, NotImplementedError):  # an init that needs real tensors
            with torch.device("cpu"):
                params, _ = initial(member, 0)
    return sum(tensor.numel() for tensor in params.values())


def _chunk_bytes(sources: Sources, hooks: set[str]) -> int:
    """As many bytes as the largest chunk, for every one of these hooks."""
    if sources.there:
        stores = rows_of(hooks, sources.open(hooks)).values()
        return max((c.bytes for s in stores for c in s.chunks()), default=0) * len(hooks)
    assert sources.recipe is not None
    rows = sources.recipe.chunk_rows
    return sum(rows * sources.widths[p] * 4 for hook in hooks for p in Hook.parse(hook).points)


def default_run_folder(sweep: Sweep) -> Path:
    """Where a sweep goes when no folder is given."""
    return Path("runs") / sweep.name
