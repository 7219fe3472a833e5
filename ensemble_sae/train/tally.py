"""Running means of what the steps report, kept on the device and read once in a while."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors


class Tally:
    """Sums per member and name in float64, over the steps since the last `reset`.

    Steps of frozen members do not count.
    """

    def __init__(self, members: int, device: torch.device) -> None:
        self._members, self._device = members, device
        self.reset()

    def reset(self) -> None:
        """Forget all sums."""
        self.steps = self._zeros()
        self.sums: dict[str, Tensor] = {}

    def add(self, start: int, stop: int, values: Tensors, alive: Tensor | None) -> None:
        """Add one step of members `start..stop`: scalars `[k]` by name. `alive`: None for all."""
        self.steps[start:stop] += 1 if alive is None else alive
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = self._zeros()
            self.sums[name][start:stop] += value if alive is None else torch.where(alive, value, 0)

    def means(self) -> Tensors:
        """Name -> mean per member, `[K]` float64; NaN where no step counted."""
        return {name: total / self.steps for name, total in self.sums.items()}

    def state_dict(self) -> Tensors:
        return {"steps": self.steps, **{f"sum/{name}": t for name, t in self.sums.items()}}

    def load_state_dict(self, state: Tensors) -> None:
        self.steps = state["steps"].to(self._device, copy=True)
        self.sums = {
            name.removeprefix("sum/"): tensor.to(self._device, copy=True)
            for name, tensor in state.items()
            if name.startswith("sum/")
        }

    def _zeros(self) -> Tensor:
        return torch.zeros(self._members, dtype=torch.float64, device=self._device)


def scalars(aux: Tensors) -> Tensors:
    """What is averaged over steps: one number per member, `[k]`."""
    return {k: t for k, t in aux.items() if t.dim() == 1 and not k.startswith("buffers/")}
