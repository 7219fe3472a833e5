"""`--dry-run`: what a sweep would be, without a step of it."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.table import Table

from ensemble_sae.data.disk import human_bytes
from ensemble_sae.dispatch.devices import Device
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
    seconds = []
    for index, device in enumerate(plan.devices):
        flop = plan.flop_per_step(index)
        speed = _flop_per_second(device)
        steps = rows // train.batch_size
        seconds.append(flop * steps / speed)
        console.print(
            f"{device.name}: {flop / 1e9:,.1f} GFLOP a step, "
            f"{human_bytes(plan.memory(index))} of {human_bytes(device.memory)}, "
            f"matrix products at {speed / 1e9:,.0f} GFLOP/s here",
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
    console.print(
        f"Estimated training time: {max(seconds) / EFFICIENCY / 60:,.1f} minutes "
        f"(at {EFFICIENCY:.0%} of the products' speed), not counting the harvest.",
        highlight=False,
        soft_wrap=True,
    )


EFFICIENCY = 0.7  # of the matrix products' speed, as whole steps reach it (benchmarks/results)


def _rows(ready: Prepared) -> tuple[int, str]:
    """Training rows of all epochs (of the longest store), and whether they are there."""
    if ready.sources.there:
        there = max(store.rows() for store in ready.sources.open(ready.hooks).values())
        return there * ready.sweep.train.epochs, "on disk"
    recipe = ready.sources.recipe
    assert recipe is not None
    rows = int((recipe.rows or 0) * (1 - recipe.held_out))
    return rows * ready.sweep.train.epochs, "to be harvested"


def _flop_per_second(device: Device) -> float:
    """The speed of a matrix product on a device, with a worker's threads: best of a few."""
    before = torch.get_num_threads()
    torch.set_num_threads(device.threads)
    size = 8192 if device.kind == "cuda" else 1024
    a = torch.randn(size, size, device=device.torch)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        product = a @ a
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    torch.set_num_threads(before)
    return 2 * size**3 / best
