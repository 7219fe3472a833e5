"""`--dry-run`: what a sweep would be, without a step of it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ensemble_sae.data.disk import human_bytes
from ensemble_sae.dispatch.cost import Speeds
from ensemble_sae.dispatch.devices import Device
from ensemble_sae.dispatch.planner import Plan
from ensemble_sae.dispatch.speeds import measure
from ensemble_sae.dispatch.ways import FEW
from ensemble_sae.engine.prepared import Prepared


def show(ready: Prepared, console: Console) -> None:
    """Members, groups, devices, parameters, memory, FLOP, rows, estimated time."""
    train, plan = ready.sweep.train, ready.plan
    rows, source = _rows(ready)
    console.print(
        f"Sweep {ready.sweep.name}: {len(ready.members)} members", highlight=False, soft_wrap=True
    )
    groups = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("group", "hook", "members", "features", "parameters each", "on"):
        numeric = name in ("members", "features", "parameters each")
        groups.add_column(name, justify="right" if numeric else "left")
    for group in ready.groups:
        where = [
            f"{device.name} ({len(task.members)})"
            for device, tasks in zip(plan.devices, plan.tasks, strict=True)
            for task in tasks
            if task.group.name == group.name
        ]
        groups.add_row(
            group.name,
            group.hook,
            str(len(group.members)),
            f"{group.n_dict:,}",
            f"{plan.parameters[group.name]:,}",
            ", ".join(where),
        )
    console.print(groups)
    speeds = _speeds(plan.devices)
    steps = rows // train.batch_size
    for index, device in enumerate(plan.devices):
        console.print(
            f"{device.name}: {plan.flop_per_step(index) / 1e9:,.1f} GFLOP a step if dense, "
            f"{human_bytes(plan.memory(index))} of {human_bytes(device.memory)}, "
            f"matrix products at {speeds[device].product / 1e9:,.0f} GFLOP/s here",
            highlight=False,
            soft_wrap=True,
        )
    total = sum(plan.parameters[g.name] * len(g.members) for g in ready.groups)
    console.print(
        f"{total:,} parameters; {rows:,} training rows {source}, {train.epochs} epoch(s), "
        f"{rows // train.batch_size:,} steps of {train.batch_size:,} rows; "
        f"{ready.flop_per_row * rows / 1e12:,.1f} TFLOP; balance {plan.balance:.0%}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_estimate(plan, speeds, steps), highlight=False, soft_wrap=True)


def _estimate(plan: Plan, speeds: dict[Device, Speeds], steps: int) -> str:
    """The time of the slowest device, from what its steps cost early in a training to late."""

    def minutes(late: bool) -> float:
        works = ((device, plan.work(i, late)) for i, device in enumerate(plan.devices))
        return max(work.seconds(speeds[device]) for device, work in works) * steps / 60

    low, high = sorted(minutes(late) for late in (False, True))
    if all(len(ways) == 1 for ways in plan.all_stacks()):
        return f"Estimated training time: {high:,.1f} minutes, not counting the harvest."
    return (
        f"Estimated training time: {low:,.1f} to {high:,.1f} minutes, not counting the harvest: "
        f"an l1 may leave {FEW:.0%} of the features active from the start on, or never make "
        "codes sparse."
    )


def _speeds(devices: tuple[Device, ...]) -> dict[Device, Speeds]:
    """Every device's; equal CPU workers are measured once, all together."""
    found: dict[Device, Speeds] = {}
    workers = [device for device in devices if device.kind == "cpu"]
    for device in devices:
        found[device] = (
            found[workers[0]]
            if device in workers[1:]
            else measure(device, together=max(1, len(workers)))
        )
    return found


def _rows(ready: Prepared) -> tuple[int, str]:
    """Training rows of all epochs (of the longest store), and whether they are there."""
    if ready.sources.there:
        there = max(store.rows() for store in ready.sources.open(ready.hooks).values())
        return there * ready.sweep.train.epochs, "on disk"
    recipe = ready.sources.recipe
    assert recipe is not None
    rows = int((recipe.rows or 0) * (1 - recipe.held_out))
    return rows * ready.sweep.train.epochs, "to be harvested"
