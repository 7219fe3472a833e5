"""When a feature was learned, whether it was lost again, and where in the dictionary it is.

Source: "Towards a Probabilistic Disentanglement of Neural Network Activations, Part 2" (the
96-autoencoder study), on learned and unlearned features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.metrics.matching import closest
from ensemble_sae.run import Checkpoint, Run

if TYPE_CHECKING:
    import pandas as pd

LEARNED = 0.9  # cosine from which on a feature counts as learned
NEVER = -1


@dataclass(frozen=True)
class History:
    """One member over T checkpoints, against F features of reference.

    A feature is learned at a checkpoint where its largest cosine with an atom is above the
    threshold.

    Attributes:
        steps: updates made, int64 `[T]`.
        cosine: of each feature with the atom closest to it, `[T, F]`.
        entry: which atom that is, int64 `[T, F]`.
        self_similarity: cosine of each atom with itself one checkpoint before, `[T - 1, n]`.
        threshold: above which a feature is learned.
    """

    steps: Tensor
    cosine: Tensor
    entry: Tensor
    self_similarity: Tensor
    threshold: float

    @property
    def is_learned(self) -> Tensor:
        """Whether each feature is learned at each checkpoint, `[T, F]`."""
        return self.cosine > self.threshold

    @property
    def learned_at(self) -> Tensor:
        """The step of the first checkpoint at which each feature is learned, or -1: `[F]`."""
        return self._first(self.is_learned)

    @property
    def unlearned_at(self) -> Tensor:
        """The step of the last checkpoint at which a feature was lost that had been learned at the
        one before, or -1: `[F]`. It may have been learned again since.
        """
        lost = self._lost().flip(0)
        return self._first(lost, self.steps.flip(0))

    @property
    def still_learned(self) -> Tensor:
        """Whether each feature is learned at the last checkpoint, `[F]`."""
        return self.is_learned[-1]

    @property
    def same_entry(self) -> Tensor:
        """Whether each feature is learned at the end, by the atom that learned it first: `[F]`."""
        first = self.is_learned.int().argmax(0)
        there = self.entry.gather(0, first[None])[0]
        return self.still_learned & (there == self.entry[-1])

    @property
    def counts(self) -> pd.DataFrame:
        """Over time, by step: features that are `learned`, those `unlearned` (learned before, but
        not now), those in the `same_entry` as when they were learned first, and the mean
        `self_similarity` of atoms with the checkpoint before (NaN at the first).
        """
        import pandas as pd

        learned, ever = self.is_learned, self.is_learned.int().cummax(0).values.bool()
        first = learned.int().argmax(0)
        kept = learned & (self.entry == self.entry.gather(0, first[None]))
        similar = torch.cat([torch.full((1,), torch.nan), self.self_similarity.mean(1)])
        return pd.DataFrame(
            {
                "learned": learned.sum(1).numpy(),
                "unlearned": (ever & ~learned).sum(1).numpy(),
                "same_entry": kept.sum(1).numpy(),
                "self_similarity": similar.numpy(),
            },
            index=pd.Index(self.steps.numpy(), name="step"),
        )

    def _lost(self) -> Tensor:
        learned = self.is_learned
        before = torch.cat([torch.zeros_like(learned[:1]), learned[:-1]])
        return before & ~learned

    def _first(self, happened: Tensor, steps: Tensor | None = None) -> Tensor:
        """The step at the first True of each column, -1 where there is none."""
        steps = self.steps if steps is None else steps
        at = steps[happened.int().argmax(0)]
        return torch.where(happened.any(0), at, NEVER)


@dataclass(frozen=True)
class Histories:
    """The histories of some members of a run.

    Attributes:
        reference: what features are those of: "truth", or "final" (each member's own last atoms).
        of: history by member id.
    """

    reference: str
    of: dict[int, History]

    def __getitem__(self, member: int) -> History:
        return self.of[member]

    @property
    def table(self) -> pd.DataFrame:
        """One row per member, by id: `features` of reference, and how many of them were ever
        `learned`, ever `unlearned`, are `still_learned` at the end, and in the `same_entry`;
        `self_similarity`, the mean over atoms between the last two checkpoints.
        """
        import pandas as pd

        rows = {}
        for member, history in self.of.items():
            similar = history.self_similarity
            rows[member] = {
                "features": history.cosine.shape[1],
                "learned": int((history.learned_at != NEVER).sum()),
                "unlearned": int((history.unlearned_at != NEVER).sum()),
                "still_learned": int(history.still_learned.sum()),
                "same_entry": int(history.same_entry.sum()),
                "self_similarity": float(similar[-1].nanmean()) if len(similar) else torch.nan,
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("id")


def histories(
    run: Run,
    *,
    members: Iterable[int] | None = None,
    reference: Literal["truth", "final"] | None = None,
    threshold: float = LEARNED,
    on_progress: Callable[[int, int], None] | None = None,
) -> Histories:
    """Follow features through the checkpoints that a run has kept.

        run = ensemble_sae.load("runs/toy_96-quick")
        ensemble_sae.histories(run).table

    How finely it is seen when a feature is learned depends on `train.checkpoint_every` and
    `train.keep_checkpoints` of the sweep. A checkpoint in which two stacks have different counts
    of steps is at each member's own count.

    Args:
        members: ids; all by default.
        reference: the true features, where the rows were made of known ones, or each member's own
            atoms at the end; by default the truth if it is known for all of these members.
        threshold: cosine above which a feature is learned.
        on_progress: is told how many members are done, and of how many.

    Raises:
        UserError: no checkpoint; no truth is known for a member's hook; an unknown member.
        CorruptFile: a checkpoint is damaged.
    """
    chosen = list(run.members.index if members is None else members)
    points = run.checkpoints
    if not points:
        raise UserError("This run has no checkpoint yet.", where=str(run.path))
    by = reference or ("truth" if all(_truth(run, m) is not None for m in chosen) else "final")
    found = {}
    for done, member in enumerate(chosen, 1):
        found[member] = _history(run, member, points, by, threshold)
        if on_progress is not None:
            on_progress(done, len(chosen))
    return Histories(by, found)


def _history(
    run: Run, member: int, points: list[Checkpoint], reference: str, threshold: float
) -> History:
    dictionaries = [run.sae(member, checkpoint=point).dictionary for point in points]
    features = dictionaries[-1] if reference == "final" else _known(run, member)
    matches = [closest(features, atoms) for atoms in dictionaries]
    pairs = pairwise(dictionaries)
    similar = [torch.nn.functional.cosine_similarity(a, b) for a, b in pairs]
    return History(
        steps=torch.tensor([point.part_of(member).step for point in points]),
        cosine=torch.stack([match.cosine for match in matches]),
        entry=torch.stack([match.index for match in matches]),
        self_similarity=torch.stack(similar) if similar else features.new_zeros(0, len(features)),
        threshold=threshold,
    )


def _known(run: Run, member: int) -> Tensor:
    truth = _truth(run, member)
    if truth is None:
        raise UserError(
            "Nobody knows the true features of these rows.",
            where=f"{run.path}: member {member}",
            found=f"hook {run.members.loc[member, 'hook']!r}",
            allowed="rows that a synthetic recipe makes",
            next_step='histories(run, reference="final")',
        )
    return truth


def _truth(run: Run, member: int) -> Tensor | None:
    truth = run.truth(str(run.members.loc[member, "hook"])) if member in run.members.index else None
    return None if truth is None else truth.atoms
