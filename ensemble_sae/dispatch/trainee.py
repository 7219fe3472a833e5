"""One task of a worker: an ensemble, who its members are, and where in the schedule it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.dispatch.messages import Source
from ensemble_sae.dispatch.planner import Task
from ensemble_sae.dispatch.schedule import Item
from ensemble_sae.files import write_tensors
from ensemble_sae.metrics.reconstruction import density_histogram
from ensemble_sae.randomness import generator
from ensemble_sae.run.checkpoint import Checkpoint, Part, Position, write_part
from ensemble_sae.signatures import resolve
from ensemble_sae.sweep import Member
from ensemble_sae.sweep.schema import Train
from ensemble_sae.train import Adam, FunctionalEnsemble, Schedule
from ensemble_sae.train.evaluate import evaluate
from ensemble_sae.train.health import ALIVE


def initial(member: Member, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A member's first params and buffers.

    The draw is named by shape, signature and the member's own seed, not by its place in the
    sweep: members that differ in l1 alone start equal, so that their comparison is paired.
    """
    signature = resolve(member.signature)
    shape = (member.signature, member.d_activation, member.n_dict)
    draw = generator(seed, "init", *shape, member.seed)
    return signature.init(
        member.d_activation, member.n_dict, generator=draw, **member.hyperparameters
    )


class Trainee:
    """Trains the members of one task and speaks of them by their ids."""

    def __init__(
        self,
        task: Task,
        train: Train,
        source: Source,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.task, self.hook = task, task.group.hook
        self.ids = [member.id for member in task.members]
        self._variance = source.variance
        self.position = Position()
        self.ensemble = _ensemble(task, train, device)
        if checkpoint is not None:
            self.position = checkpoint.part_of(self.ids[0]).position
            self.ensemble.load_state_dict(checkpoint.stacked(self.ids))

    def step(self, batch: Tensor, position: Position) -> bool:
        """Train on the batch at `position`, unless that was done before an interruption."""
        if position < self.position:
            return False
        self.ensemble.step(batch)
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
            return [{"id": member} for member in self.ids]
        name = f"{self.task.name}.safetensors"
        tensors = {
            "members": torch.tensor(self.ids),
            "rows": torch.tensor(found.rows),
            "firing": found.firing,
            "strength": found.strength,
        }
        write_tensors(folder / name, tensors)
        histogram = density_histogram(found.firing, found.rows).tolist()
        return [
            {
                "id": member,
                "fvu": _number(found.fvu[k]),
                "l0": _number(found.l0[k]),
                "dead": _number(found.dead[k]),
                "density_histogram": histogram[k],
            }
            for k, member in enumerate(self.ids)
        ]


def _ensemble(task: Task, train: Train, device: torch.device) -> FunctionalEnsemble:
    members = task.members
    clips = [math.inf if m.grad_clip is None else m.grad_clip for m in members]
    return FunctionalEnsemble.from_members(
        resolve(task.group.signature),
        [initial(member, train.seed) for member in members],
        lr=[member.lr for member in members],
        grad_clip=torch.tensor(clips, device=device),
        optimiser=Adam(train.betas, train.eps),
        schedule=Schedule(train.lr_warmup, train.l1_warmup),
        batch_size=train.batch_size,
        kernel=train.kernel,
        device=device,
    )


def _number(value: Tensor) -> float:
    return float(value)
