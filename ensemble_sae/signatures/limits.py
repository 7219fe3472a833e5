"""What a hyper-parameter's value may be. A name means the same in every signature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

LARGEST = 1e30  # far from where float32 ends, so that one step of it is still finite


class Limit(NamedTuple):
    """`low <= value <= high`; `open_below`: `low < value`; `whole`: no fractions."""

    words: str
    low: float = -LARGEST
    high: float = LARGEST
    open_below: bool = False
    whole: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a value is a number within the limit."""
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        above = value > self.low if self.open_below else value >= self.low
        return above and value <= self.high and not (self.whole and value != round(value))


def whole(low: int, high: float = 2**31, of: str = "") -> Limit:
    """A whole number from `low` to `high`; `of` says in a message what `high` is."""
    most = f"{high:,.0f}" + (f" ({of})" if of else "")
    return Limit(f"a whole number from {low:,} to {most}", low, high, whole=True)


ANY = Limit("a finite number")
NON_NEGATIVE = Limit(f"a finite number >= 0, up to {LARGEST:g}", 0.0)
POSITIVE = Limit(f"a finite number > 0, up to {LARGEST:g}", 0.0, open_below=True)

LIMITS = {
    "l1": NON_NEGATIVE,
    "bias_decay": NON_NEGATIVE,
    "l0_coefficient": NON_NEGATIVE,
    "noise": NON_NEGATIVE,
    "beta": NON_NEGATIVE,
    "anneal": NON_NEGATIVE,
    "aux_weight": NON_NEGATIVE,
    "bandwidth": POSITIVE,
    "width": POSITIVE,
    "threshold_start": POSITIVE,
    "p": Limit("a number > 0, up to 1", 0.0, 1.0, open_below=True),
    "alpha": Limit("a number > 0, up to 0.5", 0.0, 0.5, open_below=True),
    "k": whole(1),
    "aux_k": whole(1),
    "iterations": whole(1, 1000),
    "prefixes": whole(1, 20),
    "pseudo": whole(1, 65_536),
    "hidden": whole(0),
}

PENALTIES = ("l1", "l0_coefficient")  # what an active feature costs, where that is a number

CHOICES: dict[str, tuple[str, ...]] = {
    "centring": ("none", "mean", "learned"),
    "unit_norm": ("loss", "project"),
    "revive": ("none", "aux_k", "pre_act"),
}
