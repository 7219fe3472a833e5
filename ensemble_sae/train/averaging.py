"""Averaged parameters beside those that are trained, to evaluate and to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors
from ensemble_sae.train import stacking


class Averaging:
    """a <- decay_t a + (1 - decay_t) p after step t (from 1), decay_t = min(decay, t / (t + 9)).

    The rising decay keeps the first parameters from weighing more than their age deserves. A
    member whose decay is 0 has its parameters themselves.

    Source: Polyak & Juditsky 1992 for the idea; exponential averages as in Gao et al. 2024,
    section 2 (training details).
    """

    def __init__(self, decays: Tensor, params: Tensors) -> None:
        self._decays = decays
        self.chosen = decays > 0
        self.params = {name: tensor.clone() for name, tensor in params.items()}

    def update(self, start: int, stop: int, params: Tensors, step: int) -> None:
        """Take the parameters of members `start..stop` after update number `step` (from 1)."""
        weights = 1 - self._decays[start:stop].clamp(max=step / (step + 9))
        for name, tensor in params.items():
            part = self.params[name][start:stop]
            part.lerp_(tensor, stacking.per_member(weights.to(tensor), tensor))

    def restart(
        self, member: int, features: Tensor, params: Tensors, names: tuple[str, ...]
    ) -> None:
        """Features `[m]` of a member begin anew: so do their averages."""
        for name in names:
            if name in params:
                self.params[name][member, features] = params[name][member, features]

    def state_dict(self) -> Tensors:
        return dict(self.params)

    def load_state_dict(self, state: Tensors) -> None:
        for name, tensor in self.params.items():
            tensor.copy_(state[name])


def decays(values: list[float], like: Tensor) -> Tensor | None:
    """`[K]`, or None where nobody averages."""
    return torch.tensor(values, dtype=like.dtype, device=like.device) if any(values) else None
