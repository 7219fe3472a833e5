"""Many members of one shape, trained side by side on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.train import optimiser as optimisers
from ensemble_sae.train import stacking, storage
from ensemble_sae.train.health import Health
from ensemble_sae.train.kernels import Kernel, gradient_function
from ensemble_sae.train.optimiser import Adam
from ensemble_sae.train.schedules import Schedule
from ensemble_sae.train.slices import slice_bounds
from ensemble_sae.train.tally import Tally

NO_CLIP = float("inf")


class FunctionalEnsemble:
    """K members of one signature and one shape: params and buffers stacked on axis 0.

    A member trained among K equals the same member trained alone, to rounding: nothing is
    shared but the batch, the step count and the schedule. A member whose loss or gradient is
    not finite keeps its last finite state and no longer moves; the others do not notice.

    Internally the members are stepped in slices whose temporaries fit in a cache; a slice
    shares the stack's memory.

    Args:
        signature: a class with `init` and `loss` (see `ensemble_sae.signatures`).
        params, buffers: stacked tensors `[K, ...]`; the ensemble moves `params` in place.
        lr: learning rate of each member, `[K]`.
        grad_clip: largest L2 norm of a member's gradient, `[K]`; None or inf for no clipping.
        batch_size: rows of the batches to come; only the slices' width depends on it.
    """

    def __init__(
        self,
        signature: type[Any],
        params: Tensors,
        buffers: Tensors,
        lr: Tensor,
        *,
        grad_clip: Tensor | None = None,
        optimiser: Adam | None = None,
        schedule: Schedule | None = None,
        batch_size: int = 1024,
        kernel: Kernel = "auto",
    ) -> None:
        self.signature = signature
        self.params, self.buffers, self.lr = params, buffers, lr
        self.size = stacking.members_in(params)
        self.device = lr.device
        self.schedule = schedule or Schedule()
        self.batch_size, self.kernel = batch_size, kernel
        self.optimiser = optimiser or Adam()
        self.step_count = 0
        self.grad_clip = torch.full_like(lr, NO_CLIP) if grad_clip is None else grad_clip
        self._clips = bool((self.grad_clip < NO_CLIP).any())
        self.health = Health(self.size, self.device)
        self.tally = Tally(self.size, self.device)
        self._gradients = gradient_function(signature, kernel)
        self._project = _projection(signature, params, buffers)
        self._transformation = self.optimiser.transformation(self.device)
        self._bounds = slice_bounds(params, self.size, batch_size, self.device)
        self._states = [self._transformation.init(self._slice(params, i)) for i in self._indices()]

    @classmethod
    def from_members(
        cls,
        signature: type[Any],
        members: Sequence[tuple[Tensors, Tensors]],
        *,
        lr: float | Sequence[float] = 1e-3,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> FunctionalEnsemble:
        """Stack members as `init` makes them. `lr`: one for all, or one per member."""
        params = stacking.stack([params for params, _ in members])
        buffers = stacking.stack([buffers for _, buffers in members])
        dtype = next(iter(params.values())).dtype
        rates = [lr] * len(members) if isinstance(lr, float | int) else list(lr)
        return cls(
            signature,
            {name: tensor.to(device) for name, tensor in params.items()},
            {name: tensor.to(device) for name, tensor in buffers.items()},
            torch.tensor(rates, dtype=dtype, device=device),
            **options,
        )

    def step(self, batch: Tensor) -> None:
        """One update of every living member on the same rows, `[B, d]`.

        Totals and scalars are added to `self.tally`; nothing waits for the device.
        """
        buffers = self._scheduled_buffers()
        for index in self._indices():
            self._step_slice(index, buffers, batch)
        self.step_count += 1

    def members(self) -> list[tuple[Tensors, Tensors]]:
        """Each member's params and buffers, as views into the stack."""
        params, buffers = (stacking.unstack(t, self.size) for t in (self.params, self.buffers))
        return list(zip(params, buffers, strict=True))

    def state_dict(self) -> Tensors:
        """Everything that the next step depends on, as flat names -> tensors.

        Members are on axis 0 of every tensor but the counts, which all members share.
        """
        groups = {
            "params": self.params,
            "buffers": self.buffers,
            "optimiser": optimisers.join(self._states),
            "health": self.health.state_dict(),
            "tally": self.tally.state_dict(),
        }
        flat = {f"{group}/{name}": t for group, ts in groups.items() for name, t in ts.items()}
        return flat | {"lr": self.lr, "grad_clip": self.grad_clip, "step": self._step_tensor()}

    def load_state_dict(self, state: Tensors) -> None:
        """Continue exactly where `state_dict` was taken; tensors are copied into place."""
        for group, own in (("params", self.params), ("buffers", self.buffers)):
            for name, tensor in own.items():
                tensor.copy_(state[f"{group}/{name}"])
        self.lr.copy_(state["lr"])
        self.grad_clip.copy_(state["grad_clip"])
        self._clips = bool((self.grad_clip < NO_CLIP).any())
        self.step_count = int(state["step"])
        self.health.load_state_dict(_under("health", state))
        self.tally.load_state_dict(_under("tally", state))
        stored = _under("optimiser", state)
        for index in self._indices():
            start, stop = self._bounds[index]
            part = {
                name: (t if t.dim() == 0 else t[start:stop]).to(self.device, copy=True)
                for name, t in stored.items()
            }
            self._states[index] = optimisers.unflatten(self._states[index], part)

    def save(self, path: str | Path) -> None:
        """Write the ensemble into one safetensors file, atomically."""
        storage.save(self, Path(path))

    @classmethod
    def load(
        cls, path: str | Path, *, signature: type[Any] | None = None, device: str = "cpu"
    ) -> FunctionalEnsemble:
        """Read what `save` wrote; training goes on bit for bit. See `storage.load`."""
        return storage.load(cls, Path(path), signature, device)

    def _step_slice(self, index: int, buffers: Tensors, batch: Tensor) -> None:
        params = self._slice(self.params, index)
        start, stop = self._bounds[index]
        gradients, total, aux = self._gradients(params, self._slice(buffers, index), batch)
        norms = stacking.member_norms(gradients)
        alive = self.health.check(
            start, stop, torch.isfinite(total) & torch.isfinite(norms), self.step_count
        )
        self.tally.add(start, stop, {"loss": total, **aux}, alive)
        if alive is not None:
            gradients = _zero_unless(alive, gradients)
        if self._clips:
            self._clip(gradients, norms, self.grad_clip[start:stop])
        updates, self._states[index] = self._transformation.update(
            gradients, self._states[index], params=params, inplace=True
        )
        if alive is not None:
            updates = _zero_unless(alive, updates)
        rates = self.lr[start:stop] * -self.schedule.lr(self.step_count)
        for name, tensor in params.items():
            tensor.addcmul_(updates[name], stacking.per_member(rates, tensor))
        self._project_slice(params, self._slice(buffers, index))

    def _project_slice(self, params: Tensors, buffers: Tensors) -> None:
        if self._project is None:
            return
        projected = torch.func.vmap(self._project)(params, buffers)
        for name, tensor in projected.items():
            if tensor is not params[name]:
                params[name].copy_(tensor)

    @staticmethod
    def _clip(gradients: Tensors, norms: Tensor, largest: Tensor) -> None:
        """Scale each member's gradient so that its norm is at most `largest`."""
        factors = torch.where(norms > largest, largest / norms, 1.0)
        for tensor in gradients.values():
            tensor.mul_(stacking.per_member(factors, tensor))

    def _scheduled_buffers(self) -> Tensors:
        factor = self.schedule.l1(self.step_count)
        if factor == 1.0 or "l1" not in self.buffers:
            return self.buffers
        return self.buffers | {"l1": self.buffers["l1"] * factor}

    def _slice(self, stacked: Tensors, index: int) -> Tensors:
        return stacking.slice_of(stacked, *self._bounds[index])

    def _indices(self) -> range:
        return range(len(self._bounds))

    def _step_tensor(self) -> Tensor:
        return torch.tensor(self.step_count, dtype=torch.int64)


def _projection(
    signature: type[Any], params: Tensors, buffers: Tensors
) -> Callable[..., Tensors] | None:
    """The signature's `project`, unless it gives back what it is given: then there is no work."""
    project = optional(signature, "project")
    if project is None:
        return None
    member, own = ({name: t[0] for name, t in tensors.items()} for tensors in (params, buffers))
    projected = project(dict(member), own)
    return None if all(projected[name] is member[name] for name in projected) else project


def _zero_unless(alive: Tensor, stacked: Tensors) -> Tensors:
    """The same values for living members, zeros for the others (a product would keep NaN)."""
    return {
        name: torch.where(stacking.per_member(alive, tensor), tensor, 0)
        for name, tensor in stacked.items()
    }


def _under(group: str, state: Tensors) -> Tensors:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
