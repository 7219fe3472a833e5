"""What a hyper-parameter's value may be. A name means the same in every signature."""

from __future__ import annotations

import math
from typing import NamedTuple


class Limit(NamedTuple):
    """`low <= value < inf`, or `low < value < inf` where `open_below`."""

    low: float
    open_below: bool
    words: str

    def allows(self, value: float) -> bool:
        above = value > self.low if self.open_below else value >= self.low
        return above and math.isfinite(value)


NON_NEGATIVE = Limit(0.0, False, "a finite number >= 0")
POSITIVE = Limit(0.0, True, "a finite number > 0")

LIMITS = {"l1": NON_NEGATIVE, "bias_decay": NON_NEGATIVE}
