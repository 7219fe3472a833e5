"""`--dry-run`: what a sweep would be, without a step of it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ensemble_sae.data.disk import human_bytes
from ensemble_sae.dispatch.cost import Speeds
from ensemble_sae.dispatch.devices import Device
from ensemble_sae.dispatch.planner import Plan
from ensemble_sae.dispatch.speeds import measure
from ensemble_sae.dispatch.ways import FEW
from ensemble_sae.engine.prepared import Prepared
from ensemble_sae.sweep import Group


def facts(ready: Prepared) -> dict[str, Any]:
    """What the sweep would be, as JSON has it; measures how fast the devices multiply matrices.

    Returns:
        `members`: how many; `groups`: of one shape, on which devices; `devices`: `flop_per_step`
        if dense, `bytes` of `memory`, `flop_per_s`; `rows` and `steps` of all epochs; `minutes`:
        the estimated time of training, from and to.
    """
    train, plan = ready.sweep.train, ready.plan
    rows, source = _rows(ready)
    speeds, steps = _speeds(plan.devices), rows // train.batch_size
    return {
        "sweep": ready.sweep.name,
        "members": len(ready.members),
        "groups": [_group(group, plan) for group in ready.groups],
        "devices": [
            {
                "device": device.name,
                "flop_per_step": plan.flop_per_step(index),
                "bytes": plan.memory(index),
                "memory": device.memory,
                "flop_per_s": speeds[device].product,
            }
            for index, device in enumerate(plan.devices)
        ],
        "parameters": sum(plan.parameters[g.name] * len(g.members) for g in ready.groups),
        "rows": rows,
        "rows_are": source,
        "epochs": train.epochs,
        "batch_size": train.batch_size,
        "steps": steps,
        "flop": ready.flop_per_row * rows,
        "balance": plan.balance,
        "minutes": _minutes(plan, speeds, steps),
    }


def _group(group: Group, plan: Plan) -> dict[str, Any]:
    return {
        "group": group.name,
        "hook": group.hook,
        "members": len(group.members),
        "n_dict": group.n_dict,
        "parameters_each": plan.parameters[group.name],
        "on": [
            {"device": device.name, "members": len(task.members)}
            for device, tasks in zip(plan.devices, plan.tasks, strict=True)
            for task in tasks
            if task.group.name == group.name
        ],
    }


def show(found: dict[str, Any], console: Console) -> None:
    """Members, groups, devices, parameters, memory, FLOP, rows, estimated time: of `facts`."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(f"Sweep {found['sweep']}: {found['members']} members")
    groups = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("group", "hook", "members", "features", "parameters each", "on"):
        numeric = name in ("members", "features", "parameters each")
        groups.add_column(name, justify="right" if numeric else "left")
    for group in found["groups"]:
        groups.add_row(
            group["group"],
            group["hook"],
            str(group["members"]),
            f"{group['n_dict']:,}",
            f"{group['parameters_each']:,}",
            ", ".join(f"{part['device']} ({part['members']})" for part in group["on"]),
        )
    console.print(groups)
    for device in found["devices"]:
        say(
            f"{device['device']}: {device['flop_per_step'] / 1e9:,.1f} GFLOP a step if dense, "
            f"{human_bytes(device['bytes'])} of {human_bytes(device['memory'])}, "
            f"matrix products at {device['flop_per_s'] / 1e9:,.0f} GFLOP/s here"
        )
    say(
        f"{found['parameters']:,} parameters; {found['rows']:,} training rows "
        f"{found['rows_are']}, {found['epochs']} epoch(s), "
        f"{found['steps']:,} steps of {found['batch_size']:,} rows; "
        f"{found['flop'] / 1e12:,.1f} TFLOP; balance {found['balance']:.0%}"
    )
    say(_estimate(found["minutes"]))


def _minutes(plan: Plan, speeds: dict[Device, Speeds], steps: int) -> list[float]:
    """The time of the slowest device, from and to: what steps cost early in a training and late.
    They are one where nothing but the dense way is open.
    """

    def minutes(late: bool) -> float:
        works = ((device, plan.work(i, late)) for i, device in enumerate(plan.devices))
        return max(work.seconds(speeds[device]) for device, work in works) * steps / 60

    low, high = sorted(minutes(late) for late in (False, True))
    return [high, high] if all(len(ways) == 1 for ways in plan.all_stacks()) else [low, high]


def _estimate(minutes: list[float]) -> str:
    low, high = minutes
    if low == high:
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
