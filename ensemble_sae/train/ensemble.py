"""Many members of one shape, trained side by side on the same batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.errors import UserError
from ensemble_sae.kernels.choice import Kernel, Kernels
from ensemble_sae.kernels.gradients import Found
from ensemble_sae.kernels.precision import Precision
from ensemble_sae.kernels.sparse import SparsePass
from ensemble_sae.signatures import Tensors
from ensemble_sae.train import constraints, direct, stacking, storage
from ensemble_sae.train.draws import draws
from ensemble_sae.train.health import Health
from ensemble_sae.train.mechanisms import Mechanisms
from ensemble_sae.train.optimiser import Optimiser
from ensemble_sae.train.slices import Slice, slices
from ensemble_sae.train.states import States
from ensemble_sae.train.tally import Tally, scalars

NO_CLIP = float("inf")


class FunctionalEnsemble:
    """K members of one signature and one shape: params and buffers stacked on axis 0.

    A member trained among K equals the same member trained alone, to rounding: nothing is
    shared but the batch, the step count and the random draws of a step. A member whose loss or
    gradient is not finite keeps its last finite state and no longer moves; the others do not
    notice.

    Internally the members are stepped in slices whose temporaries fit in a cache; a slice
    shares the stack's memory.

    Args:
        signature: a class with `init` and `loss` (see `ensemble_sae.signatures`).
        params, buffers: stacked tensors `[K, ...]`; the ensemble moves them in place.
        lr: learning rate of each member, `[K]`.
        grad_clip: largest L2 norm of a member's gradient, `[K]`; None or inf for no clipping.
        dynamics: schedules, set-points, resampling and more, one per member; their `lr` and
            `grad_clip` are not read here.
        batch_size: rows of the batches to come; only the slices' width depends on it.
        seed: of the random draws of steps and resamplings.
        steps: updates until the end of the training, for schedules that end there.
    """

    def __init__(
        self,
        signature: type[Any],
        params: Tensors,
        buffers: Tensors,
        lr: Tensor,
        *,
        grad_clip: Tensor | None = None,
        dynamics: Sequence[Dynamics] | None = None,
        optimiser: Optimiser | None = None,
        batch_size: int = 1024,
        kernel: Kernel = "auto",
        precision: Precision = "fp32",
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        self.signature = signature
        self.params, self.buffers, self.lr = params, buffers, lr
        self.size = stacking.members_in(params)
        self.device = lr.device
        self.batch_size, self.kernel, self.precision = batch_size, kernel, precision
        self.seed, self.steps = seed, steps
        self.optimiser = optimiser or Optimiser()
        self.step_count = 0
        self.grad_clip = torch.full_like(lr, NO_CLIP) if grad_clip is None else grad_clip
        self._clips = bool((self.grad_clip < NO_CLIP).any())
        self.health = Health(self.size, self.device)
        self.tally = Tally(self.size, self.device)
        self.dynamics = list(dynamics or [Dynamics.model_validate({})] * self.size)
        if len(self.dynamics) != self.size:
            raise UserError(
                "Dynamics are given one per member.",
                where="dynamics",
                found=str(len(self.dynamics)),
                allowed=f"{self.size}, or none",
            )
        self.mechanisms = Mechanisms(signature, self.dynamics, params, buffers, lr, steps)
        self.kernels = Kernels(signature, kernel, params, buffers, self.device, precision)
        self._project = constraints.projection(signature, params, buffers)
        self._transformation = self.optimiser.transformation(self.device)
        self.states = States(self._transformation, params, self._cut())

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
        buffers = self._buffers_of_step(batch.shape[0])
        states = self.states
        for index, part in enumerate(states.slices):
            states.of[index] = self._step_slice(part, states.of[index], buffers, batch)
        self.step_count += 1
        if self.kernels.look(self.step_count):
            states.recut(self._cut(), states.joined())
        finished = self.mechanisms.look(self.params, self.buffers, self.step_count)
        self.health.finish(finished, self.step_count)

    def wants_rows(self) -> bool:
        """Whether members are to be resampled now, after the last step."""
        resampling = self.mechanisms.resampling
        return resampling is not None and bool(resampling.due(self.step_count))

    def resample(self, batches: Iterable[Tensor]) -> Tensor:
        """Let dead features begin anew (see `Resampling`); returns how many of each member, `[K]`.

        Args:
            batches: rows `[B, d]` that their directions are drawn from.
        """
        resampling = self.mechanisms.resampling
        if resampling is None:
            return torch.zeros(self.size, dtype=torch.int64)
        return resampling.run(self, batches)

    def forget(self, member: int, features: Tensor) -> None:
        """What the optimiser and the mechanisms remember of features `[m]` that begin anew."""
        self.states.forget(member, features, self.mechanisms.features)
        self.mechanisms.restart(member, features, self.params)

    def evaluated(self) -> Tensors:
        """The stacked params that are evaluated and kept: averaged ones where a member has them."""
        averaging = self.mechanisms.averaging
        if averaging is None:
            return self.params
        averaged = constraints.projected(self.signature, averaging.params, self.buffers)
        return {
            name: stacking.where_alive(averaging.chosen, averaged[name], tensor)
            for name, tensor in self.params.items()
        }

    def evaluated_buffers(self) -> Tensors:
        """The buffers with the penalties as the last step had them: some codes depend on them."""
        return self.mechanisms.penalties(self.buffers, max(self.step_count - 1, 0))

    def member(self, index: int) -> tuple[Tensors, Tensors]:
        """One member's params and buffers, as views into the stack."""
        params = {name: tensor[index] for name, tensor in self.params.items()}
        return params, {name: tensor[index] for name, tensor in self.buffers.items()}

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
            "optimiser": self.states.joined(),
            "health": self.health.state_dict(),
            "tally": self.tally.state_dict(),
            "mechanisms": self.mechanisms.state_dict(),
        }
        flat = {f"{group}/{name}": t for group, ts in groups.items() for name, t in ts.items()}
        return flat | {
            "lr": self.lr,
            "grad_clip": self.grad_clip,
            "penalty": self._penalty(),
            "is_sparse": self.kernels.is_sparse.to(torch.int8),
            "step": self._step_tensor(),
        }

    def load_state_dict(self, state: Tensors) -> None:
        """Continue exactly where `state_dict` was taken; tensors are copied into place."""
        for group, own in (("params", self.params), ("buffers", self.buffers)):
            for name, tensor in own.items():
                tensor.copy_(state[f"{group}/{name}"])
        self.lr.copy_(state["lr"])
        self.grad_clip.copy_(state["grad_clip"])
        self._clips = bool((self.grad_clip < NO_CLIP).any())
        self.step_count = int(state["step"])
        self.health.load_state_dict(stacking.under("health", state))
        self.tally.load_state_dict(stacking.under("tally", state))
        self.mechanisms.load_state_dict(stacking.under("mechanisms", state))
        self.kernels.restore(state["is_sparse"])
        stored = stacking.under("optimiser", state)
        on_device = {name: tensor.to(self.device) for name, tensor in stored.items()}
        self.states.recut(self._cut(), on_device)

    def save(self, path: str | Path) -> None:
        """Write the ensemble into one safetensors file, atomically."""
        storage.save(self, Path(path))

    @classmethod
    def load(
        cls, path: str | Path, *, signature: type[Any] | None = None, device: str = "cpu"
    ) -> FunctionalEnsemble:
        """Read what `save` wrote; training goes on bit for bit. See `storage.load`."""
        return storage.load(cls, Path(path), signature, device)

    def _step_slice(self, part: Slice, state: Any, buffers: Tensors, batch: Tensor) -> Any:
        """Update members of one slice; returns the optimiser's new state."""
        start, stop, is_sparse = part
        params, around = (stacking.slice_of(t, start, stop) for t in (self.params, buffers))
        found = self.kernels.of(is_sparse)(params, around, batch)
        own = self._direct(part, found)
        if own is not None:
            alive, rates = None, self._rates(start, stop)
            self.tally.add(start, stop, {"loss": found.total, **scalars(found.aux)}, None)
            state = direct.descend(own, params, state, self.optimiser, self._transformation, rates)
        else:
            alive, state = self._descend(start, stop, params, state, found)
        self._project_slice(start, stop, params, around, alive)
        self._move_buffers(start, stop, found.aux, alive)
        self.mechanisms.observe(start, stop, params, found.aux, alive, self.step_count + 1)
        self.kernels.observe(start, stop, found.aux, alive)
        return state

    def _direct(self, part: Slice, found: Found) -> SparsePass | None:
        """What was found, if its kernel may update by itself: nobody else wants the gradients."""
        plain = self.optimiser.is_adam and not self._clips and not self.mechanisms.reads_gradients
        alive = self.health.alive[part.start : part.stop]
        return direct.updates_itself(found) if plain and bool(alive.all()) else None

    def _descend(
        self, start: int, stop: int, params: Tensors, state: Any, found: Found
    ) -> tuple[Tensor | None, Any]:
        """Update by the gradients; returns who lives, None for all, and the optimiser's state."""
        gradients, tricks = found.params, self.mechanisms
        tricks.gradients(start, stop, params, gradients)
        norms = stacking.member_norms(gradients)
        alive = self.health.check(
            start, stop, torch.isfinite(found.total) & torch.isfinite(norms), self.step_count
        )
        self.tally.add(start, stop, {"loss": found.total, **scalars(found.aux)}, alive)
        if alive is not None:
            gradients = stacking.zero_unless(alive, gradients)
        if self._clips:
            constraints.clip(gradients, norms, self.grad_clip[start:stop])
        updates, state = self._transformation.update(gradients, state, params=params, inplace=True)
        if alive is not None:
            updates = stacking.zero_unless(alive, updates)
        tricks.updates(start, stop, updates)
        rates = self._rates(start, stop)
        for name, tensor in params.items():
            tensor.addcmul_(updates[name], stacking.per_member(rates, tensor))
        return alive, state

    def _rates(self, start: int, stop: int) -> Tensor:
        """What updates are multiplied by, `[k]`: downhill at each member's scheduled rate."""
        factor = self.mechanisms.lr.factor(self.step_count)
        rates = -self.lr[start:stop]
        return rates if factor is None else rates * factor[start:stop].to(rates)

    def _move_buffers(self, start: int, stop: int, aux: Tensors, alive: Tensor | None) -> None:
        """Take over the buffers that a loss moves: `buffers/NAME` in what it reports."""
        for name, value in stacking.under("buffers", aux).items():
            part = self.buffers[name][start:stop]
            part.copy_(stacking.where_alive(alive, value, part))

    def _project_slice(
        self, start: int, stop: int, params: Tensors, buffers: Tensors, alive: Tensor | None
    ) -> None:
        if self._project is None:
            return
        moved = torch.func.vmap(self._project)(params, buffers)
        moved = {name: tensor for name, tensor in moved.items() if tensor is not params[name]}
        self.mechanisms.projection(start, stop, params, moved)
        for name, tensor in moved.items():
            params[name].copy_(stacking.where_alive(alive, tensor, params[name]))

    def _buffers_of_step(self, rows: int) -> Tensors:
        drawn: Tensors = {}
        if hasattr(self.signature, "DRAWS"):
            n_dict = self.params["decoder"].shape[1]
            drawn = draws(
                self.signature, rows, n_dict, seed=self.seed, step=self.step_count, like=self.lr
            )
        return self.mechanisms.buffers(self.buffers, self.step_count, drawn)

    def _cut(self) -> list[Slice]:
        return slices(self.params, self.kernels.is_sparse, self.batch_size, self.device)

    def _penalty(self) -> Tensor:
        """The factor on each penalty at the last step, `[K]`: not read back, but by who encodes."""
        factor = self.mechanisms.penalty(max(self.step_count - 1, 0))
        return torch.ones_like(self.lr) if factor is None else factor.to(self.lr, copy=True)

    def _step_tensor(self) -> Tensor:
        return torch.tensor(self.step_count, dtype=torch.int64)
