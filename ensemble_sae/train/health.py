"""Which members are alive, and at which step the others stopped being finite."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors

ALIVE = -1


class Health:
    """`frozen_at [K]`: the step whose loss or gradient was not finite, or -1 for a living member.

    On a CPU, looking is free, so the common case (all alive) is told by None and costs nothing
    more. On a device nothing is waited for: the mask is always returned and applied.
    """

    def __init__(self, members: int, device: torch.device) -> None:
        self.frozen_at = torch.full((members,), ALIVE, dtype=torch.int64, device=device)

    @property
    def alive(self) -> Tensor:
        """`[K]` bool."""
        return self.frozen_at == ALIVE

    def check(self, start: int, stop: int, finite: Tensor, step: int) -> Tensor | None:
        """Mark members of a slice that are not finite; the slice's mask, or None if all live."""
        part = self.frozen_at[start:stop]
        alive = part == ALIVE
        if alive.device.type == "cpu" and bool((alive & finite).all()):
            return None
        part.masked_fill_(alive & ~finite, step)
        return part == ALIVE

    def state_dict(self) -> Tensors:
        return {"frozen_at": self.frozen_at}

    def load_state_dict(self, state: Tensors) -> None:
        self.frozen_at.copy_(state["frozen_at"])
