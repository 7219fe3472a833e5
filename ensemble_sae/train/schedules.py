"""Factors that change with the step, one per member. The first update is step 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.errors import UserError

SHAPES = ("constant", "linear", "cosine")


class Schedule:
    """A factor on a number of each member: a rise, then a fall (or rise) to a share at the end.

        rise(s)  = min(1, (s + 1) / warmup)
        t(s)     = (s + 1 - warmup) / (steps - warmup), within 0 and 1
        constant: 1      linear: 1 + (end - 1) t      cosine: end + (1 - end) (1 + cos(pi t)) / 2

    The factor is rise * fall, `[K]` float64. At the last step it is `end` (Loshchilov & Hutter
    2017, "SGDR", equation 5, without restarts).
    """

    def __init__(self, warmup: list[int], shape: list[str], end: list[float], steps: list[int]):
        self._warmup = torch.tensor(warmup, dtype=torch.float64)
        self._shape = torch.tensor([SHAPES.index(s) for s in shape])
        self._end = torch.tensor(end, dtype=torch.float64)
        self._length = (torch.tensor(steps, dtype=torch.float64) - self._warmup).clamp_min(1)
        self._flat = not any(warmup) and set(shape) <= {"constant"}

    @classmethod
    def of(cls, name: str, dynamics: Sequence[Dynamics], steps: int | None) -> Schedule:
        """The schedule of `lr` or of `l1` of K members, in a training of so many steps."""
        ends = [d.schedule_steps or steps or 0 for d in dynamics]
        for d, last in zip(dynamics, ends, strict=True):
            if getattr(d, f"{name}_schedule") != "constant" and not last:
                raise UserError(
                    "A schedule needs to know where it ends.",
                    where=f"{name}_schedule",
                    found=getattr(d, f"{name}_schedule"),
                    next_step="give schedule_steps = ..., or train on a store that is complete",
                )
        return cls(
            [getattr(d, f"{name}_warmup") for d in dynamics],
            [getattr(d, f"{name}_schedule") for d in dynamics],
            [getattr(d, f"{name}_end") for d in dynamics],
            ends,
        )

    def factor(self, step: int) -> Tensor | None:
        """The factors `[K]` at a step, on the CPU; None where all of them are 1 for ever."""
        if self._flat:
            return None
        rise = ((step + 1) / self._warmup.clamp_min(1)).clamp(max=1)
        time = ((step + 1 - self._warmup) / self._length).clamp(0, 1)
        cosine = (1 - torch.cos(torch.pi * time)) / 2
        done = torch.where(self._shape == 1, time, torch.where(self._shape == 2, cosine, 0.0))
        return rise * torch.lerp(torch.ones_like(done), self._end, done)  # exact at both ends
