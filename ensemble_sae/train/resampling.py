"""Dead features start again where the member explains worst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.train import planting

if TYPE_CHECKING:
    from ensemble_sae.train.ensemble import FunctionalEnsemble


class Resampling:
    """At its steps a member's dead features take the directions of rows it explains badly.

    A row is drawn for each dead feature, without replacement, with a probability proportional to
    its squared error to the power `resample_power`; see `planting.replant` for what becomes of
    the feature. The optimiser's memory of it is zeroed. `resample = "random"` draws directions
    from the sphere instead.

    Source: Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron Resampling": steps
    25,000 to 100,000, silence of 12,500 steps, 819,200 rows, power 2 (the square of the loss; 1/2
    is the root, as a summary of the procedure has it). Deviations: the rows are those of the chunk
    at hand, as many as `resample_rows`; silence is counted in steps (`dead_after`); the encoder's
    new norm, 0.2 of the others', can be set.

    Draws are keyed by (seed, step): nothing depends on who else is in the ensemble.
    """

    def __init__(self, dynamics: Sequence[Dynamics], params: Tensors, features: tuple[str, ...]):
        self._dynamics = list(dynamics)
        self._features = features
        # What a feature's numbers start at; equal for all features of a member.
        self.resets = {
            name: params[name][:, 0].clone()
            for name in features
            if name in params and params[name].dim() == 2
        }

    def due(self, step: int) -> list[int]:
        """The members whose resampling comes after so many steps."""
        return [
            k
            for k, d in enumerate(self._dynamics)
            if d.resample != "none"
            and step % d.resample_every == 0
            and 0 < step <= d.resample_until
        ]

    def run(self, ensemble: FunctionalEnsemble, batches: Iterable[Tensor]) -> Tensor:
        """Resample the members that are due; returns how many features of each began anew, `[K]`.

        Args:
            batches: rows `[B, d]` to draw from.
        """
        step, members = ensemble.step_count, self.due(ensemble.step_count)
        dead = ensemble.mechanisms.dead & ensemble.health.alive[:, None]
        members = [k for k in members if bool(dead[k].any())]
        counts = torch.zeros(ensemble.size, dtype=torch.int64)
        if not members:
            return counts
        rows = torch.cat(list(batches))
        for k in members:
            features = dead[k].nonzero()[:, 0]
            counts[k] = len(features)
            params, buffers = ensemble.member(k)
            directions = self._directions(ensemble, k, params, buffers, rows, len(features), step)
            resets = {name: value[k] for name, value in self.resets.items()}
            planting.replant(
                ensemble.signature,
                params,
                resets,
                features,
                directions,
                ~dead[k],
                self._dynamics[k].resample_scale,
            )
            self._constrain(ensemble.signature, params, buffers, features)
            ensemble.forget(k, features)
        return counts

    def _constrain(
        self, signature: type[Any], params: Tensors, buffers: Tensors, features: Tensor
    ) -> None:
        """What began anew is inside the member's constraints, before anyone looks at it."""
        project = optional(signature, "project")
        if project is not None:
            moved = project(params, buffers)
            for name in self._features:
                if name in params:
                    params[name][features] = moved[name][features]

    def _directions(
        self,
        ensemble: FunctionalEnsemble,
        k: int,
        params: Tensors,
        buffers: Tensors,
        rows: Tensor,
        count: int,
        step: int,
    ) -> Tensor:
        """`[count, w]` for the dead features of member k."""
        draw = generator(ensemble.seed, "resample", step)
        entered = planting.entered(ensemble.signature, params, buffers, rows)
        if self._dynamics[k].resample == "random":
            return torch.randn(count, entered.shape[1], generator=draw).to(entered)
        weights = squared_errors(ensemble.signature, params, buffers, rows)
        weights = weights.double().cpu() / weights.max().double().cpu().clamp_min(1e-300)
        weights = weights.pow(self._dynamics[k].resample_power)
        weights[(entered == 0).all(1).cpu()] = 0  # a row without a direction
        usable = int((weights > 0).sum())
        if usable == 0:
            weights, usable = torch.ones_like(weights), len(weights)
        chosen = torch.multinomial(weights, count, replacement=count > usable, generator=draw)
        return entered[chosen.to(entered.device)]

    def state_dict(self) -> Tensors:
        return dict(self.resets)

    def load_state_dict(self, state: Tensors) -> None:
        for name, tensor in self.resets.items():
            tensor.copy_(state[name])


def squared_errors(signature: type, params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
    """sum over d of (x^ - x)^2 of each row, `[R, d] -> [R]`, of one member."""
    target = optional(signature, "target")
    parts = []
    for part in rows.split(4096):
        wanted = part if target is None else target(params, buffers, part)
        code = signature.encode(params, buffers, part)  # type: ignore[attr-defined]
        found = signature.decode(params, buffers, code)  # type: ignore[attr-defined]
        parts.append((found - wanted).square().sum(1))
    return torch.cat(parts)
