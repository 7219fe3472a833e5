"""Members that are told how many features to use, not what a feature costs."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors

MEMORY = 0.9  # of the running L0, per step


class SetPoint:
    """Moves each member's penalty until its L0 is its target.

    With L the running mean of the batches' L0, every step multiplies the penalty by
    `exp(rate * clip(log((L + 1) / (target + 1)), -1, 1))`: an integral controller on log scales,
    where a sparse code's L0 is about a power of its penalty. Members without a target keep a
    factor of 1.

    Args:
        targets: `[K]`, NaN for none; rates: `[K]`, the largest change of the log per step.
    """

    def __init__(self, targets: Tensor, rates: Tensor) -> None:
        self._targets, self._rates = targets, rates
        self.factor = torch.ones_like(targets)
        self.running = targets.nan_to_num(0.0)

    def observe(self, start: int, stop: int, l0: Tensor, alive: Tensor | None) -> None:
        """Take the L0 of one step of members `start..stop`, `[k]`."""
        target, running = self._targets[start:stop], self.running[start:stop]
        now = torch.lerp(l0.to(running), running, MEMORY)
        off = ((now + 1) / (target + 1)).log().clamp(-1, 1).nan_to_num(0.0)
        factor = self.factor[start:stop] * torch.exp(self._rates[start:stop] * off)
        if alive is not None:
            now = torch.where(alive, now, running)
            factor = torch.where(alive, factor, self.factor[start:stop])
        self.running[start:stop], self.factor[start:stop] = now, factor

    def state_dict(self) -> Tensors:
        return {"factor": self.factor, "running": self.running}

    def load_state_dict(self, state: Tensors) -> None:
        self.factor.copy_(state["factor"])
        self.running.copy_(state["running"])
