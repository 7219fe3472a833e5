"""Times of steps: all contestants interleaved, so that a busy moment meets all of them.

In every round each contestant takes a turn of some steps; the order moves on by one place from
round to round. Ratios are taken within rounds, and then their median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from contestants import TRAINERS, Contestant, DenseLimit, Shape, SquareProduct, Trainer
from torch import Tensor

WARM_UP = 1  # steps before the one whose losses are compared
LIMIT, PEAK = "limit", "peak"


def seconds_of(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    """The time of `steps` calls: wall clock on a CPU, between two events on CUDA."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - began


def measure_steps(job: dict[str, Any], shape: Shape, device: torch.device) -> dict[str, Any]:
    """Every number of members of a shape: `{"cells": [...], "notes": [...]}`."""
    cells, notes = [], []
    for members in job["members"]:
        cell, problems = measure_cell(shape, members, job, device)
        cells.append(cell)
        notes += problems
    return {"cells": cells, "notes": sorted(set(notes))}


def measure_cell(
    shape: Shape, members: int, job: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """Round-robin over the contestants, some steps each; times per step of every turn."""
    batches = shape.batches(4, device)
    field: dict[str, Contestant] = {}
    losses: dict[str, Tensor] = {}
    notes = []
    for name in job["contestants"]:
        try:
            trainer = TRAINERS[name](shape, members, device)
            losses[name] = _first_losses(trainer, batches)
        except Exception as error:  # a compiler is the machine's affair: leave it out, say so
            if name != "compiled":
                raise
            problem = str(error).strip().splitlines() or ["no message"]
            notes.append(f"compiled loop left out: {type(error).__name__}: {problem[0]}")
            continue
        field[name] = trainer
    square = SquareProduct(device)
    field |= {LIMIT: DenseLimit(shape, members, device), PEAK: square}
    turns = _take_turns(field, batches, job, device)
    cell = {
        "shape": shape.name,
        "signature": shape.signature,
        "d": shape.d,
        "dicts": list(shape.dicts),
        "batch": shape.batch,
        "members": members,
        "flop": shape.flop(members),
        "loss_difference": _spread(losses),
        "contestants": {name: _summary(times) for name, times in turns.items()},
        **_ratios(turns, shape.flop(members), square.flop),
    }
    return cell, notes


def _first_losses(trainer: Trainer, batches: list[Tensor]) -> Tensor:
    """The members' losses after a few updates, `[K]`; this is the warm-up too."""
    for batch in batches[:WARM_UP]:
        trainer.step(batch)
    trainer.losses()  # an ensemble starts a new mean
    trainer.step(batches[WARM_UP])
    return trainer.losses().cpu()


def _take_turns(
    field: dict[str, Contestant], batches: list[Tensor], job: dict[str, Any], device: torch.device
) -> dict[str, list[float]]:
    """Seconds per step of every turn, by contestant. Turn r of all belongs to round r."""
    taken = dict.fromkeys(field, 0)

    def turn(name: str, steps: int) -> float:
        def step() -> None:
            taken[name] += 1
            field[name].step(batches[taken[name] % len(batches)])

        return seconds_of(step, steps, device) / steps

    steps = {name: max(1, round(job["turn_s"] / turn(name, 1))) for name in field}
    turns: dict[str, list[float]] = {name: [] for name in field}
    names, began = list(field), time.perf_counter()
    for number in range(job["rounds"][1]):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            turns[name].append(turn(name, steps[name]))
        enough = number + 1 >= job["rounds"][0]
        if enough and time.perf_counter() - began > job["seconds"]:
            break
    return turns


def _summary(times: list[float]) -> dict[str, Any]:
    first, median, third = _quartiles(times)
    return {
        "median_ms": median * 1e3,
        "quartiles_ms": [first * 1e3, third * 1e3],
        "turns": len(times),
    }


def _ratios(turns: dict[str, list[float]], flop: int, square_flop: int) -> dict[str, Any]:
    """Ratios within rounds, as quartiles: what disturbs a round disturbs both sides of it."""
    trainers = [name for name in turns if name in TRAINERS]
    rates = [square_flop / seconds for seconds in turns[PEAK]]

    def within_rounds(above: list[float], below: list[float]) -> list[float]:
        return _quartiles([a / b for a, b in zip(above, below, strict=True)])

    return {
        "peak_flop_per_s": _quartiles(rates),
        "of_limit": {name: within_rounds(turns[LIMIT], turns[name]) for name in trainers},
        "of_peak": {
            name: within_rounds([flop / s for s in turns[name]], rates)
            for name in [*trainers, LIMIT]
        },
        "speedup_over": {
            name: within_rounds(turns[name], turns["ensemble"])
            for name in trainers
            if name != "ensemble"
        },
    }


def _quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def _spread(losses: dict[str, Tensor]) -> float:
    """The largest relative difference between two trainers' losses of one member."""
    all_losses = torch.stack(list(losses.values()))
    spread = (all_losses.max(0).values - all_losses.min(0).values) / all_losses.abs().max(0).values
    return float(spread.max())
