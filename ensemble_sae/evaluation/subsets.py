"""Some of a member's features: those that another dictionary has too, or the most frequent ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ensemble_sae.analysis.neighbours import pairs
from ensemble_sae.errors import UserError
from ensemble_sae.metrics.matching import mcs
from ensemble_sae.run import Run, Sae

FORMS = "mcs:0.9 (features whose cosine with one of a neighbour is above 0.9) or frequent:64"


@dataclass(frozen=True)
class Subset:
    """`mcs:T`: MCS with the next larger dictionary of the sweep, or else with another seed, above
    T. `frequent:K`: the K features that fire on the most held-out rows.
    """

    kind: Literal["mcs", "frequent"]
    number: float

    @classmethod
    def parse(cls, text: str) -> Subset:
        """Read `mcs:0.9` or `frequent:64`.

        Raises:
            UserError: neither, or a number that makes no sense.
        """
        kind, _, number = text.partition(":")
        try:
            value = float(number)
            if kind == "mcs" and -1 <= value < 1:
                return cls("mcs", value)
            if kind == "frequent" and value >= 1 and value.is_integer():
                return cls("frequent", value)
        except ValueError:
            pass
        raise UserError("Which features?", where="--keep", found=repr(text), allowed=FORMS)

    @property
    def name(self) -> str:
        """As the results have it: `mcs:0.9`."""
        return f"{self.kind}:{str(self.number).removesuffix('.0')}"


def beside(run: Run) -> dict[int, int]:
    """The neighbour that each member's features are looked for in: the next larger dictionary, or
    else the first of other seeds; members without one are not in it.
    """
    found: dict[int, int] = {}
    for kind in ("larger", "seed"):
        for member, other in pairs(run, kind):
            found.setdefault(member, other)
    return found


def masks(
    run: Run, member: int, sae: Sae, subsets: Sequence[Subset], neighbours: dict[int, int]
) -> dict[str, Tensor]:
    """Which features each subset leaves of a member, bool `[n]`; those that it has none of.

    A member without a neighbour has no `mcs`, one whose features were not counted no `frequent`.

    Args:
        neighbours: as `beside` gives them, found once for all members.
    """
    found: dict[str, Tensor] = {}
    for subset in subsets:
        if subset.kind == "mcs":
            mask = _shared(run, sae, neighbours.get(member), subset.number)
        else:
            mask = _frequent(run, member, int(subset.number))
        if mask is not None:
            found[subset.name] = mask.to(sae.device)
    return found


def _shared(run: Run, sae: Sae, other: int | None, threshold: float) -> Tensor | None:
    if other is None:
        return None
    return mcs(sae.dictionary, run.sae(other, device=str(sae.device)).dictionary) > threshold


def _frequent(run: Run, member: int, count: int) -> Tensor | None:
    firing = run.firing(member)
    if firing is None:
        return None
    mask = torch.zeros(len(firing), dtype=torch.bool)
    mask[firing.argsort(descending=True, stable=True)[:count]] = True
    return mask & (firing > 0)
