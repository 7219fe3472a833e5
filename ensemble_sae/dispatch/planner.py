"""Hundreds of members -> few groups -> devices, by a model of cost and memory.

Cost of a member's step, for the plan: `cost.member_flop`, whatever its kernel. Seconds of a step,
for the dry run: `cost.work_of`. Memory: `memory.needed`, and the worker itself; on a GPU there are
two chunks of every hook besides, on a CPU two of those whose rows are joined from several stores
(the others are mapped files).

Groups are laid end to end in order of cost and cut into one stretch per device, so that every
device has the same work to within one member and at most (devices - 1) groups are split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensemble_sae.dispatch import memory
from ensemble_sae.dispatch.cost import Stack, Work, member_flop, work_of
from ensemble_sae.dispatch.devices import GIB, Device
from ensemble_sae.dispatch.ways import stacks_of
from ensemble_sae.errors import UserError
from ensemble_sae.kernels.choice import Kernel
from ensemble_sae.sweep import Group, Member


@dataclass(frozen=True)
class Task:
    """Some members of one group, for one device."""

    group: Group
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """The group's name and the first member's id: unique, also where a group is split."""
        return f"{self.group.name}-m{self.members[0].id}"


@dataclass(frozen=True)
class Plan:
    """Which device trains what."""

    devices: tuple[Device, ...]
    tasks: tuple[tuple[Task, ...], ...]  # one tuple per device
    batch_size: int
    parameters: Mapping[str, int]  # of one member, by group name
    chunk_bytes: int
    joined_bytes: int = 0
    kernel: Kernel = "auto"
    is_adam: bool = True

    def flop_per_step(self, device: int) -> float:
        """FLOP of one step of everything on a device."""
        return sum(
            member_flop(member, self.batch_size, task.group.n_dict)
            for task in self.tasks[device]
            for member in task.members
        )

    def work(self, device: int, late: bool) -> Work:
        """What a device does in a step, early in the training or late: see `ways`."""
        kind, place = self.devices[device].kind, -1 if late else 0
        found = [self.stacks(task, kind) for task in self.tasks[device]]
        return sum((work_of(ways[place]) for task in found for ways in task), Work())

    def all_stacks(self) -> list[list[Stack]]:
        """What all tasks are, and may become."""
        pairs = zip(self.devices, self.tasks, strict=True)
        return [ways for d, tasks in pairs for t in tasks for ways in self.stacks(t, d.kind)]

    def stacks(self, task: Task, kind: str, largest: bool = False) -> list[list[Stack]]:
        """What a task is on a kind of device: see `ways.stacks_of`."""
        return stacks_of(
            task.group,
            task.members,
            rows=self.batch_size,
            parameters=self.parameters[task.group.name],
            kernel=self.kernel,
            kind=kind,
            is_adam=self.is_adam,
            largest=largest,
        )

    def memory(self, device: int) -> int:
        """Bytes that the device's worker needs."""
        return _needed(self, self.tasks[device], self.devices[device].kind)

    @property
    def balance(self) -> float:
        """Mean over largest work of the devices: 1 is perfect."""
        work = [self.flop_per_step(i) for i in range(len(self.devices))]
        return sum(work) / len(work) / max(work)


def plan(
    groups: list[Group],
    devices: list[Device],
    *,
    batch_size: int,
    parameters: Mapping[str, int],
    chunk_bytes: int,
    joined_bytes: int = 0,
    kernel: Kernel = "auto",
    is_adam: bool = True,
) -> Plan:
    """Spread the groups' members over the devices.

    Args:
        parameters: group name -> number of parameters of one of its members.
        chunk_bytes: size of the largest chunk of every hook together.
        joined_bytes: of those of them that are joined from several stores.
        kernel: that members may take. is_adam: whether Adam moves them, with a decay or without.

    Raises:
        UserError: something cannot fit; names the member or the device and the memory.
    """
    tasks = _cut(groups, devices, batch_size)
    used = tuple(device for device, mine in zip(devices, tasks, strict=True) if mine)
    sizes = batch_size, dict(parameters), chunk_bytes, joined_bytes, kernel, is_adam
    made = Plan(used, tuple(t for t in tasks if t), *sizes)
    for index, device in enumerate(made.devices):
        _refuse_what_cannot_fit(made, index, device)
    return made


def _cut(groups: list[Group], devices: list[Device], batch_size: int) -> list[tuple[Task, ...]]:
    line = [(g, m) for g in groups for m in g.members]
    # Not by the group's name: an interruption may have split a group, and the line must stay.
    line.sort(key=lambda gm: (-_flop(gm[0], gm[1], batch_size), _kind(gm[1]), gm[1].id))
    share = sum(_flop(group, member, batch_size) for group, member in line) / len(devices)
    pieces: list[dict[str, list[Member]]] = [{} for _ in devices]
    by_name = {group.name: group for group in groups}
    done = 0.0
    for group, member in line:
        cost = _flop(group, member, batch_size)
        # The device in whose stretch the middle of this member's work lies.
        index = min(int((done + cost / 2) / share), len(devices) - 1)
        pieces[index].setdefault(group.name, []).append(member)
        done += cost
    return [tuple(Task(by_name[name], tuple(ms)) for name, ms in piece.items()) for piece in pieces]


def _flop(group: Group, member: Member, batch_size: int) -> float:
    return member_flop(member, batch_size, group.n_dict)


def _kind(member: Member) -> tuple[str, int, str]:
    return member.signature, member.n_dict, member.hook


def _needed(made: Plan, tasks: tuple[Task, ...], kind: str) -> int:
    """Bytes of some tasks on a device of this kind."""
    # Mapped files are the page cache's; joined rows are copies.
    chunks = 2 * (made.joined_bytes if kind == "cpu" else made.chunk_bytes)
    stacks = [ways for task in tasks for ways in made.stacks(task, kind, largest=True)]
    return memory.BASE.get(kind, 0) + chunks + memory.needed(stacks)


def _refuse_what_cannot_fit(made: Plan, index: int, device: Device) -> None:
    for task in made.tasks[index]:
        one = Task(task.group, task.members[:1])
        alone = _needed(made, (one,), device.kind)
        if alone > device.memory:
            member = task.members[0]
            raise UserError(
                f"Member {member.id} ({member.name}) does not fit on {device.name}.",
                found=f"{alone / GIB:.1f} GiB needed, {device.memory / GIB:.1f} GiB there",
                next_step="a smaller dict_ratio, or --set train.batch_size=...",
            )
    needed = made.memory(index)
    if needed > device.memory:
        count = sum(len(task.members) for task in made.tasks[index])
        largest = max((m for t in made.tasks[index] for m in t.members), key=lambda m: m.n_dict)
        raise UserError(
            f"{count} members do not fit on {device.name} at once.",
            found=f"{needed / GIB:.1f} GiB needed, {device.memory / GIB:.1f} GiB there; "
            f"the largest is member {largest.id} ({largest.name})",
            next_step="more devices, or fewer members: split the sweep into two files",
        )
