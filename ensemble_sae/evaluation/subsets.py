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


def masks(run: Run, member: int, sae: Sae, subsets: Sequence[Subset]) -> dict[str, Tensor]:
    """Which features each subset leaves of a member, bool `[n]`; those that it has none of.

    A member without a neighbour has no `mcs`, one whose features were not counted no `frequent`.
    """
    found: dict[str, Tensor] = {}
    for subset in subsets:
        if subset.kind == "mcs":
            mask = _shared(run, member, sae, subset.number)
        else:
            mask = _frequent(run, member, int(subset.number))
        if mask is not None:
            found[subset.name] = mask.to(sae.device)
    return found


def _shared(run: Run, member: int, sae: Sae, threshold: float) -> Tensor | None:
    for kind in ("larger", "seed"):
        others = dict(reversed(list(pairs(run, kind))))  # the first of several seeds
        if member in others:
            other = run.sae(others[member], device=str(sae.device))
            return mcs(sae.dictionary, other.dictionary) > threshold
    return None


def _frequent(run: Run, member: int, count: int) -> Tensor | None:
    firing = run.firing(member)
    if firing is None:
        return None
    mask = torch.zeros(len(firing), dtype=torch.bool)
    mask[firing.argsort(descending=True, stable=True)[:count]] = True
    return mask & (firing > 0)
