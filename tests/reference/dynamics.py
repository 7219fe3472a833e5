"""What changes over a training, for one member, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .frame import Array, Arrays, length


def factor(step: int, warmup: int, shape: str, end: float, steps: int) -> float:
    """On the learning rate or the penalty at update number `step`, of `steps` (from 1)."""
    if step <= warmup:
        return step / warmup
    if shape == "constant":
        return 1.0
    if step >= steps:
        return end
    t = (step - warmup) / (steps - warmup)
    if shape == "linear":
        return 1 - (1 - end) * t
    return end + (1 - end) * (1 + math.cos(math.pi * t)) / 2


class SetPoint:
    """The controller of one penalty."""

    def __init__(self, target: float, rate: float) -> None:
        self.target, self.rate = target, rate
        self.running, self.factor = target, 1.0

    def observe(self, l0: float) -> None:
        self.running = 0.9 * self.running + 0.1 * l0
        off = math.log((self.running + 1) / (self.target + 1))
        self.factor *= math.exp(self.rate * min(1.0, max(-1.0, off)))


def averages(first: Array, history: Sequence[Array], decay: float) -> Array:
    """The average after `history`, the parameters after each update, which began at `first`."""
    average = first
    for t, params in enumerate(history, 1):
        keep = min(decay, t / (t + 9))
        average = keep * average + (1 - keep) * params
    return average


def resampling_weights(reconstruction: Array, target: Array, power: float) -> Array:
    """What rows are drawn by: the squared error to a power; all alike where there is no error."""
    errors = np.array([np.sum(row**2) for row in reconstruction - target])
    return (errors / errors.max()) ** power if errors.any() else np.ones(len(errors))


def replanted(
    params: Arrays,
    dead: Sequence[int],
    directions: Array,
    starts: Mapping[str, float],
    scale: float = 0.2,
) -> Arrays:
    """Dead features at their directions: D as long as the living, E `scale` of it, b as it began.

    Of a wide direction E takes the first entries and D the last.
    """
    after = {name: array.copy() for name, array in params.items()}
    living = [i for i in range(len(params["decoder"])) if i not in dead]
    for feature, direction in zip(dead, directions, strict=True):
        for name, size in (("decoder", 1.0), ("encoder", scale)):
            if name in params:
                width = params[name].shape[1]
                part = direction[-width:] if name == "decoder" else direction[:width]
                mean = np.mean([length(params[name][i]) for i in living]) if living else 1.0
                after[name][feature] = size * mean * part / length(part)
        for name, value in starts.items():
            after[name][feature] = value
    return after


def frozen_features(before: Array, now: Array, dead: Array, at: float) -> set[int]:
    """Features whose directions (unit rows) have turned by little since the look before."""
    return {i for i in range(len(now)) if float(before[i] @ now[i]) >= at and not dead[i]}
