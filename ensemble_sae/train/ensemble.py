"""Many members of one shape, trained side by side on the same batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.errors import UserError
from ensemble_sae.signatures import Tensors
from ensemble_sae.train import constraints, stacking, storage
from ensemble_sae.train import optimiser as optimisers
from ensemble_sae.train.draws import draws
from ensemble_sae.train.health import Health
from ensemble_sae.train.kernels import Kernel, gradient_function
from ensemble_sae.train.mechanisms import Mechanisms
from ensemble_sae.train.optimiser import Optimiser
from ensemble_sae.train.slices import slice_bounds
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
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        self.signature = signature
        self.params, self.buffers, self.lr = params, buffers, lr
        self.size = stacking.members_in(params)
        self.device = lr.device
        self.batch_size, self.kernel, self.seed, self.steps = batch_size, kernel, seed, steps
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
        self._gradients = gradient_function(signature, kernel, {*params, *buffers})
        self._project = constraints.projection(signature, params, buffers)
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
        buffers = self._buffers_of_step(batch.shape[0])
        for index in self._indices():
            self._step_slice(index, buffers, batch)
        self.step_count += 1
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
        for (start, stop), state in zip(self._bounds, self._states, strict=True):
            if start <= member < stop:
                optimisers.forget(state, member - start, features, self.mechanisms.features)
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
            "optimiser": optimisers.join(self._states),
            "health": self.health.state_dict(),
            "tally": self.tally.state_dict(),
            "mechanisms": self.mechanisms.state_dict(),
        }
        flat = {f"{group}/{name}": t for group, ts in groups.items() for name, t in ts.items()}
        return flat | {
            "lr": self.lr,
            "grad_clip": self.grad_clip,
            "penalty": self._penalty(),
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
        stored = stacking.under("optimiser", state)
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
        params, tricks = self._slice(self.params, index), self.mechanisms
        start, stop = self._bounds[index]
        gradients, total, aux = self._gradients(params, self._slice(buffers, index), batch)
        tricks.gradients(start, stop, params, gradients)
        norms = stacking.member_norms(gradients)
        alive = self.health.check(
            start, stop, torch.isfinite(total) & torch.isfinite(norms), self.step_count
        )
        self.tally.add(start, stop, {"loss": total, **scalars(aux)}, alive)
        if alive is not None:
            gradients = stacking.zero_unless(alive, gradients)
        if self._clips:
            constraints.clip(gradients, norms, self.grad_clip[start:stop])
        updates, self._states[index] = self._transformation.update(
            gradients, self._states[index], params=params, inplace=True
        )
        if alive is not None:
            updates = stacking.zero_unless(alive, updates)
        tricks.updates(start, stop, updates)
        rates = self._rates(start, stop)
        for name, tensor in params.items():
            tensor.addcmul_(updates[name], stacking.per_member(rates, tensor))
        self._project_slice(start, stop, params, self._slice(buffers, index), alive)
        self._move_buffers(start, stop, aux, alive)
        tricks.observe(start, stop, params, aux, alive, self.step_count + 1)

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

    def _slice(self, stacked: Tensors, index: int) -> Tensors:
        return stacking.slice_of(stacked, *self._bounds[index])

    def _indices(self) -> range:
        return range(len(self._bounds))

    def _penalty(self) -> Tensor:
        """The factor on each penalty at the last step, `[K]`: not read back, but by who encodes."""
        factor = self.mechanisms.penalty(max(self.step_count - 1, 0))
        return torch.ones_like(self.lr) if factor is None else factor.to(self.lr, copy=True)

    def _step_tensor(self) -> Tensor:
        return torch.tensor(self.step_count, dtype=torch.int64)
