"""Times of steps: all contestants interleaved, so that a busy moment meets all of them.

In every round each contestant takes a turn of some steps; the order moves on by one place from
round to round. Ratios are taken within rounds, and then their median.

While they are timed members do not move: their learning rate is 0, so that densities stay what
they are. Adam's arithmetic is done all the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from contestants import (
    KERNELS,
    LOOPS,
    TRAINERS,
    Contestant,
    DenseLimit,
    Ensemble,
    Shape,
    SquareProduct,
    Trainer,
)
from torch import Tensor

WARM_UP = 1  # steps before the one whose losses are compared
TOLERANCE = 1e-4  # of the losses in float32, relative
LIMIT, PEAK = "limit", "peak"


class Disagreement(Exception):
    """Contestants that should do the same mathematics do not."""


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


def measure_steps(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Every case and number of members of a job: `{"cells": [...], "notes": [...]}`."""
    cells, notes = [], []
    for case in job["cases"]:
        shape = Shape.of(case["shape"])
        for members in case["members"]:
            cell, problems = measure_cell(shape, members, case["contestants"], job, device)
            cells.append(cell)
            notes += problems
    return {"cells": cells, "notes": sorted(set(notes))}


def measure_cell(
    shape: Shape, members: int, contestants: list[str], pace: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """Compare the contestants' losses, then let them take turns: a cell, and notes.

    Args:
        pace: `seconds`, fewest and most `rounds`, and `turn_s`, about how long a turn lasts.
    """
    batches = shape.batches(4, device)
    losses, notes = _compare(shape, members, contestants, batches)
    trainers = {name: _ready(name, shape, members, batches) for name in losses}
    square = SquareProduct(device)
    field: dict[str, Contestant] = {
        **trainers,
        LIMIT: DenseLimit(shape, members, device),
        PEAK: square,
    }
    turns = _take_turns(field, batches, pace, device)
    cell = {
        "shape": shape.name,
        "signature": shape.signature,
        "density": shape.density,
        "d": shape.d,
        "dicts": list(shape.dicts),
        "batch": shape.batch,
        "members": members,
        "flop": shape.flop(members),
        "loss_difference": _spread(losses),
        **_seen(trainers),
        "contestants": {name: _summary(times) for name, times in turns.items()},
        **_ratios(turns, shape.flop(members), square.flop),
    }
    return cell, notes


def _compare(
    shape: Shape, members: int, contestants: list[str], batches: list[Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Losses of all that can run here, while they train at `LR`; and notes about the others.

    Raises:
        Disagreement: two of them differ by more than rounding.
    """
    losses: dict[str, Tensor] = {}
    notes = []
    for name in contestants:
        try:
            losses[name] = _first_losses(TRAINERS[name](shape, members, batches[0].device), batches)
        except Exception as error:  # a compiler is the machine's affair: leave it out, say so
            if name != "compiled":
                raise
            problem = str(error).strip().splitlines() or ["no message"]
            notes.append(f"compiled loop left out: {type(error).__name__}: {problem[0]}")
    if _spread(losses) > TOLERANCE:
        found = "; ".join(f"{name}: {values.tolist()}" for name, values in losses.items())
        raise Disagreement(f"{shape}, {members} members: losses in the second step: {found}")
    return losses, notes


def _first_losses(trainer: Trainer, batches: list[Tensor]) -> Tensor:
    """The members' losses after a few updates, `[K]`."""
    for batch in batches[:WARM_UP]:
        trainer.step(batch)
    trainer.losses()  # an ensemble starts a new mean
    trainer.step(batches[WARM_UP])
    return trainer.losses().cpu()


def _ready(name: str, shape: Shape, members: int, batches: list[Tensor]) -> Trainer:
    """A new contestant whose members stay where they are, warm."""
    trainer = TRAINERS[name](shape, members, batches[0].device, lr=0.0)
    if name == "auto" and isinstance(trainer, Ensemble):
        trainer.settle(batches[0])
    trainer.step(batches[0])
    return trainer


def _seen(trainers: Mapping[str, Trainer]) -> dict[str, Any]:
    """The share of active features, and how many members `auto` gives to the sparse kernel."""
    ours = {name: one for name, one in trainers.items() if isinstance(one, Ensemble)}
    found: dict[str, Any] = {"active": next(iter(ours.values())).active()} if ours else {}
    return found | ({"auto_sparse": ours["auto"].sparse_members()} if "auto" in ours else {})


def _take_turns(
    field: Mapping[str, Contestant],
    batches: list[Tensor],
    pace: dict[str, Any],
    device: torch.device,
) -> dict[str, list[float]]:
    """Seconds per step of every turn, by contestant. Turn r of all belongs to round r."""
    taken = dict.fromkeys(field, 0)

    def turn(name: str, steps: int) -> float:
        def step() -> None:
            taken[name] += 1
            field[name].step(batches[taken[name] % len(batches)])

        return seconds_of(step, steps, device) / steps

    steps = {name: max(1, round(pace["turn_s"] / turn(name, 1))) for name in field}
    turns: dict[str, list[float]] = {name: [] for name in field}
    names, began = list(field), time.perf_counter()
    for number in range(pace["rounds"][1]):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            turns[name].append(turn(name, steps[name]))
        enough = number + 1 >= pace["rounds"][0]
        if enough and time.perf_counter() - began > pace["seconds"]:
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
    kernels = [name for name in turns if name in KERNELS]
    rates = [square_flop / seconds for seconds in turns[PEAK]]

    def within_rounds(above: list[float], below: list[float]) -> list[float]:
        return _quartiles([a / b for a, b in zip(above, below, strict=True)])

    return {
        "peak_flop_per_s": _quartiles(rates),
        "limit_of_peak": within_rounds([flop / s for s in turns[LIMIT]], rates),
        "of_limit": {name: within_rounds(turns[LIMIT], turns[name]) for name in trainers},
        "over": {
            loop: {name: within_rounds(turns[loop], turns[name]) for name in kernels}
            for loop in LOOPS
            if loop in turns
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
