"""Features that no longer turn are left as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.signatures import Tensors


class Freezing:
    """At every look, a feature whose direction has a cosine of at least `freeze_at` with itself at
    the look before, and that is not dead, is frozen: its parameters are no longer updated.

    A member whose features are all frozen is finished, and moves no longer.

    State: `frozen [K, n]` bool, `before [K, n, d]` the directions at the last look.
    """

    def __init__(
        self, dynamics: Sequence[Dynamics], directions: Tensor, mask: Tensor | None = None
    ) -> None:
        self._every = [d.freeze_every for d in dynamics]
        self._from = [d.freeze_from for d in dynamics]
        self._at = [d.freeze_at for d in dynamics]
        self.before = directions.clone()
        # Padding does not move: it counts as frozen.
        self.frozen = directions.new_zeros(directions.shape[:2]) > 0 if mask is None else mask == 0

    def due(self, step: int) -> list[int]:
        """The members to look at after so many steps."""
        return [k for k, every in enumerate(self._every) if every and step % every == 0]

    def look(self, members: list[int], directions: Tensor, dead: Tensor, step: int) -> list[int]:
        """Freeze what is stable; returns the members that are finished by that.

        Args:
            directions: of all members, unit rows `[K, n, d]`; dead: `[K, n]` bool.
        """
        finished = []
        for k in members:
            if step >= self._from[k]:
                cosine = (directions[k] * self.before[k]).sum(-1)
                self.frozen[k] |= (cosine >= self._at[k]) & ~dead[k]
                if bool(self.frozen[k].all()):
                    finished.append(k)
            self.before[k] = directions[k]
        return finished

    def hold(self, start: int, stop: int, tensors: Tensors, features: tuple[str, ...]) -> None:
        """Zero what would move frozen features of members `start..stop`."""
        for name in features:
            if name in tensors:
                tensors[name].masked_fill_(self._mask(start, stop, tensors[name]), 0)

    def keep(
        self, start: int, stop: int, params: Tensors, moved: Tensors, features: tuple[str, ...]
    ) -> None:
        """Frozen features as they are in `params`: to project again moves the last digit."""
        for name in features:
            if name in moved:
                mask = self._mask(start, stop, moved[name])
                moved[name] = torch.where(mask, params[name], moved[name])

    def _mask(self, start: int, stop: int, like: Tensor) -> Tensor:
        frozen = self.frozen[start:stop]
        return frozen.view(*frozen.shape, *[1] * (like.dim() - 2))

    def state_dict(self) -> Tensors:
        return {"frozen": self.frozen, "before": self.before}

    def load_state_dict(self, state: Tensors) -> None:
        self.frozen.copy_(state["frozen"])
        self.before.copy_(state["before"])
