"""Which members still move, and at which step the others stopped."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors

ALIVE = -1


class Health:
    """`frozen_at [K]`: the step whose loss or gradient was not finite, or -1.
    `finished_at [K]`: the step after which all features were frozen, or -1.

    On a CPU, looking is free, so the common case (all alive) is told by None and costs nothing
    more. On a device nothing is waited for: the mask is always returned and applied.
    """

    def __init__(self, members: int, device: torch.device) -> None:
        self.frozen_at = torch.full((members,), ALIVE, dtype=torch.int64, device=device)
        self.finished_at = self.frozen_at.clone()

    @property
    def alive(self) -> Tensor:
        """`[K]` bool."""
        return (self.frozen_at == ALIVE) & (self.finished_at == ALIVE)

    def check(self, start: int, stop: int, finite: Tensor, step: int) -> Tensor | None:
        """Mark members of a slice that are not finite; the slice's mask, or None if all live."""
        part = self.frozen_at[start:stop]
        moving = self.finished_at[start:stop] == ALIVE
        alive = (part == ALIVE) & moving
        if alive.device.type == "cpu" and bool((alive & finite).all()):
            return None
        part.masked_fill_(alive & ~finite, step)
        return (part == ALIVE) & moving

    def finish(self, members: list[int], step: int) -> None:
        """These members have nothing left to learn."""
        for member in members:
            if self.alive[member]:
                self.finished_at[member] = step

    def state_dict(self) -> Tensors:
        return {"frozen_at": self.frozen_at, "finished_at": self.finished_at}

    def load_state_dict(self, state: Tensors) -> None:
        self.frozen_at.copy_(state["frozen_at"])
        self.finished_at.copy_(state["finished_at"])
