"""One task of a worker: an ensemble, who its members are, and where in the schedule it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.dispatch.held_out import ended, features, table_rows
from ensemble_sae.dispatch.initial import Initials
from ensemble_sae.dispatch.messages import Source
from ensemble_sae.dispatch.planner import Task
from ensemble_sae.dispatch.schedule import Item
from ensemble_sae.files import write_tensors
from ensemble_sae.run.checkpoint import Checkpoint, Part, Position, write_part
from ensemble_sae.signatures import Tensors, resolve
from ensemble_sae.sweep.schema import Train
from ensemble_sae.train import Dynamics, FunctionalEnsemble, Optimiser
from ensemble_sae.train.evaluate import evaluate
from ensemble_sae.train.health import ALIVE


class Trainee:
    """Trains the members of one task and speaks of them by their ids."""

    def __init__(
        self,
        task: Task,
        train: Train,
        source: Source,
        device: torch.device,
        checkpoint: Checkpoint | None,
        sample: Callable[[int], Tensor],
    ) -> None:
        self.task, self.hook = task, task.group.hook
        self.ids = [member.id for member in task.members]
        self._variance = source.variance
        self.position = Position()
        initials = Initials(train.seed, task.group.n_dict, sample)
        make = initials.make if checkpoint is None else initials.shell
        first = [make(member) for member in task.members]
        self.ensemble = _ensemble(task, train, first, source.steps, device)
        if checkpoint is not None:
            self.position = checkpoint.part_of(self.ids[0]).position
            own = self.ensemble.mechanisms.state_dict()
            unused = {f"mechanisms/{name}": tensor for name, tensor in own.items()}
            self.ensemble.load_state_dict(checkpoint.stacked(self.ids, unused))

    def step(
        self, batch: Tensor, position: Position, around: Callable[[], Iterable[Tensor]]
    ) -> bool:
        """Train on the batch at `position`, unless that was done before an interruption.

        Args:
            around: gives batches of the chunk at hand, for those who want more than one.
        """
        if position < self.position:
            return False
        self.ensemble.step(batch)
        if self.ensemble.wants_rows():
            self.ensemble.resample(around())
        self.position = Position(position.round, position.batch + 1)
        return True

    def finish_round(self, number: int, item: Item | None) -> list[dict[str, Any]]:
        """The round's mean metrics, one row per member; starts the next round's.

        Nothing where the hook has no chunk in this round, or where the round was finished
        before an interruption that left others behind.
        """
        if self.position >= Position(number + 1):
            return []
        self.position = Position(number + 1)
        if item is None:
            return []
        means = self.means()
        frozen = self.ensemble.health.frozen_at.tolist()
        self.ensemble.tally.reset()
        return [
            {
                "round": number,
                "epoch": item.epoch,
                "chunk": item.chunk,
                "step": self.ensemble.step_count,
                "member": member,
                **{name: values[k] for name, values in means.items()},
                "frozen_at": None if frozen[k] == ALIVE else frozen[k],
            }
            for k, member in enumerate(self.ids)
        ]

    def means(self) -> dict[str, list[float]]:
        """The round's running means by name, per member, with `fvu` from `mse` beside them."""
        means = self.ensemble.tally.means()
        if "mse" in means and self._variance > 0:
            means["fvu"] = means["mse"] / self._variance
        # By name: a tally that comes from a checkpoint has forgotten its order.
        return {name: means[name].tolist() for name in sorted(means)}

    def frozen(self) -> dict[int, int]:
        """Frozen members: id -> step."""
        steps = self.ensemble.health.frozen_at.tolist()
        return {m: at for m, at in zip(self.ids, steps, strict=True) if at != ALIVE}

    def save(self, folder: Path) -> Part:
        """Write this task's part of a checkpoint."""
        state = self.ensemble.state_dict()
        return write_part(folder, self.task.group.name, self.ids, state, self.position)

    def evaluate(self, batches: Iterable[Tensor], folder: Path) -> list[dict[str, Any]]:
        """Held-out metrics, one row per member; the features' statistics go into `folder`."""
        found = evaluate(self.ensemble, batches)
        if found is None:
            return ended(self.task.members, self.ensemble)
        name = f"{self.task.name}.safetensors"
        write_tensors(folder / name, features(self.ids, found))
        return table_rows(self.task.members, self.ensemble, found)


def _ensemble(
    task: Task,
    train: Train,
    first: list[tuple[Tensors, Tensors]],
    steps: int | None,
    device: torch.device,
) -> FunctionalEnsemble:
    members = task.members
    clips = [math.inf if m.grad_clip is None else m.grad_clip for m in members]
    return FunctionalEnsemble.from_members(
        resolve(task.group.signature),
        first,
        lr=[member.lr for member in members],
        grad_clip=torch.tensor(clips, device=device),
        dynamics=[Dynamics(**member.dynamics) for member in members],
        optimiser=Optimiser(
            train.optimiser, train.betas, train.eps, train.weight_decay, train.momentum
        ),
        batch_size=train.batch_size,
        kernel=train.kernel,
        precision=train.precision,
        seed=train.seed,
        steps=steps,
        device=device,
    )
