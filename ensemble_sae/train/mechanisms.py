"""What members may have beyond a gradient and an optimiser: only what some member asks for is made.

The ensemble calls the hooks below at fixed places of a step; each mechanism keeps its own state,
with members on axis 0, so that it is saved, resumed and cut into parts like everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.errors import UserError
from ensemble_sae.signatures import Tensors, name_of
from ensemble_sae.signatures.limits import PENALTIES
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.train import averaging
from ensemble_sae.train.activity import Activity
from ensemble_sae.train.averaging import Averaging
from ensemble_sae.train.constraints import remove_parallel
from ensemble_sae.train.freezing import Freezing
from ensemble_sae.train.resampling import Resampling
from ensemble_sae.train.schedules import Schedule
from ensemble_sae.train.setpoint import SetPoint


class Mechanisms:
    """The mechanisms of K members of one signature.

    Args:
        dynamics: one per member; steps: updates until the end of the training, if known.
    """

    def __init__(
        self,
        signature: type[Any],
        dynamics: Sequence[Dynamics],
        params: Tensors,
        buffers: Tensors,
        like: Tensor,
        steps: int | None,
    ) -> None:
        self.signature, self.dynamics = signature, list(dynamics)
        self.features: tuple[str, ...] = getattr(signature, "FEATURES", ())
        self.lr, self.l1 = (Schedule.of(name, dynamics, steps) for name in ("lr", "l1"))
        self.setpoint = _setpoint(dynamics, like)
        self.averaging = _averaging(dynamics, params, like)
        self.resampling = self._resampling(params)
        self.freezing = self._freezing(params, buffers)
        self.activity = self._activity(params, buffers, like)
        flags = [d.remove_parallel for d in dynamics]
        self._parallel = torch.tensor(flags, device=like.device) if any(flags) else None
        if any(flags) and "decoder" not in params:
            raise UserError(
                "remove_parallel needs a param `decoder`.",
                where="remove_parallel",
                found=f"{name_of(signature)} with {', '.join(params)}",
                next_step="leave it out, or name the dictionary `decoder`",
            )

    def buffers(self, buffers: Tensors, step: int, drawn: Tensors) -> Tensors:
        """The buffers as this step's loss sees them: scheduled, with counts and draws."""
        now = dict(buffers)
        if "step" in now:
            now["step"] = torch.full_like(now["step"], step)
        if "dead" in now:
            now["dead"] = self.dead.to(now["dead"])
        members = next(iter(buffers.values())).shape[0] if buffers else len(self.dynamics)
        now |= {name: draw.expand(members, *draw.shape) for name, draw in drawn.items()}
        return self.penalties(now, step)

    def penalties(self, buffers: Tensors, step: int) -> Tensors:
        """The buffers with the penalties as they are at a step: scheduled, moved to a target."""
        factor = self.penalty(step)
        if factor is None:
            return buffers
        changed = {n: buffers[n] * factor.to(buffers[n]) for n in PENALTIES if n in buffers}
        return buffers | changed

    def penalty(self, step: int) -> Tensor | None:
        """The factor on every member's penalty at a step, `[K]`; None where all are 1 for ever."""
        factor = self.l1.factor(step)
        if self.setpoint is None:
            return factor
        moved = self.setpoint.factor
        return moved if factor is None else moved * factor.to(moved)

    @property
    def reads_gradients(self) -> bool:
        """Whether something stands between a gradient and the optimiser."""
        return self._parallel is not None or self.freezing is not None

    def gradients(self, start: int, stop: int, params: Tensors, gradients: Tensors) -> None:
        """Change the gradients of members `start..stop` in place."""
        if self._parallel is not None:
            remove_parallel(gradients, params, self._parallel[start:stop])
        if self.freezing is not None:
            self.freezing.hold(start, stop, gradients, self.features)

    def updates(self, start: int, stop: int, updates: Tensors) -> None:
        """Change the updates of members `start..stop` in place."""
        if self.freezing is not None:
            self.freezing.hold(start, stop, updates, self.features)

    def projection(self, start: int, stop: int, params: Tensors, moved: Tensors) -> None:
        """Change what a projection makes of members `start..stop`, in place."""
        if self.freezing is not None:
            self.freezing.keep(start, stop, params, moved, self.features)

    def observe(
        self, start: int, stop: int, params: Tensors, aux: Tensors, alive: Tensor | None, step: int
    ) -> None:
        """Learn from update number `step` (from 1) of members `start..stop`."""
        if self.setpoint is not None and "l0" in aux:
            self.setpoint.observe(start, stop, aux["l0"], alive)
        if self.activity is not None and "fired" in aux:
            self.activity.observe(start, stop, aux["fired"])
        if self.averaging is not None:
            self.averaging.update(start, stop, params, step)

    def look(self, params: Tensors, buffers: Tensors, step: int) -> list[int]:
        """After a whole step: freeze stable features; returns members that are finished."""
        if self.freezing is None or not (due := self.freezing.due(step)):
            return []
        return self.freezing.look(due, self._directions(params, buffers), self.dead, step)

    def restart(self, member: int, features: Tensor, params: Tensors) -> None:
        """Features `[m]` of a member have begun anew."""
        if self.activity is not None:
            self.activity.restart(member, features)
        if self.averaging is not None:
            self.averaging.restart(member, features, params, self.features)

    @property
    def dead(self) -> Tensor:
        """`[K, n]` bool."""
        assert self.activity is not None
        return self.activity.dead

    def state_dict(self) -> Tensors:
        return {
            f"{name}/{key}": tensor
            for name, mechanism in self._there().items()
            for key, tensor in mechanism.state_dict().items()
        }

    def load_state_dict(self, state: Tensors) -> None:
        for name, mechanism in self._there().items():
            prefix = f"{name}/"
            mechanism.load_state_dict(
                {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            )

    def _there(self) -> dict[str, Any]:
        known = {
            "setpoint": self.setpoint,
            "average": self.averaging,
            "activity": self.activity,
            "resampling": self.resampling,
            "freezing": self.freezing,
        }
        return {name: mechanism for name, mechanism in known.items() if mechanism is not None}

    def _resampling(self, params: Tensors) -> Resampling | None:
        if all(d.resample == "none" for d in self.dynamics):
            return None
        self._needs("resample", "encode", "decode", "FEATURES")
        return Resampling(self.dynamics, params, self.features)

    def _freezing(self, params: Tensors, buffers: Tensors) -> Freezing | None:
        if not any(d.freeze_every for d in self.dynamics):
            return None
        self._needs("freeze_every", "dictionary", "FEATURES")
        return Freezing(self.dynamics, self._directions(params, buffers), buffers.get("mask"))

    def _activity(self, params: Tensors, buffers: Tensors, like: Tensor) -> Activity | None:
        if self.resampling is None and self.freezing is None and "dead" not in buffers:
            return None
        dead_after = torch.tensor([d.dead_after for d in self.dynamics], device=like.device)
        return Activity(params["decoder"].shape[1], dead_after, buffers.get("mask"))

    def _directions(self, params: Tensors, buffers: Tensors) -> Tensor:
        return vmap(self.signature.dictionary)(params, buffers)

    def _needs(self, key: str, *parts: str) -> None:
        missing = [part for part in parts if optional(self.signature, part) is None]
        if missing:
            raise UserError(
                f"{key} needs more than this signature has.",
                where=key,
                found=f"{name_of(self.signature)} without {', '.join(missing)}",
                next_step="add it to the class: docs/own_signature.md",
            )


def _setpoint(dynamics: Sequence[Dynamics], like: Tensor) -> SetPoint | None:
    if all(d.target_l0 is None for d in dynamics):
        return None
    targets = [float("nan") if d.target_l0 is None else d.target_l0 for d in dynamics]
    rates = [d.target_rate for d in dynamics]
    return SetPoint(
        torch.tensor(targets, dtype=like.dtype, device=like.device),
        torch.tensor(rates, dtype=like.dtype, device=like.device),
    )


def _averaging(dynamics: Sequence[Dynamics], params: Tensors, like: Tensor) -> Averaging | None:
    decays = averaging.decays([d.ema for d in dynamics], like)
    return None if decays is None else Averaging(decays, params)
