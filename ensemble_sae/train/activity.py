"""Which features have been silent, and for how long."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors


class Activity:
    """`silent [K, n]` int32: steps since a feature last fired on a row of a batch.

    Args:
        dead_after: `[K]` steps from which on a silent feature is dead.
        mask: `[K, n]`, 0 where there is no feature but padding, which is never dead.
    """

    def __init__(self, n_dict: int, dead_after: Tensor, mask: Tensor | None = None) -> None:
        self._dead_after, self._mask = dead_after[:, None], mask
        shape = (dead_after.shape[0], n_dict)
        self.silent = torch.zeros(shape, dtype=torch.int32, device=dead_after.device)

    def observe(self, start: int, stop: int, fired: Tensor) -> None:
        """Take one step's `fired [k, n]` (rows on which each feature was active)."""
        silent = self.silent[start:stop]
        silent.add_(1).masked_fill_(fired > 0, 0)

    @property
    def dead(self) -> Tensor:
        """`[K, n]` bool."""
        silent = self.silent >= self._dead_after
        return silent if self._mask is None else silent & (self._mask > 0)

    def restart(self, member: int, features: Tensor) -> None:
        """Features `[m]` of a member begin anew."""
        self.silent[member, features] = 0

    def state_dict(self) -> Tensors:
        return {"silent": self.silent}

    def load_state_dict(self, state: Tensors) -> None:
        self.silent.copy_(state["silent"])
