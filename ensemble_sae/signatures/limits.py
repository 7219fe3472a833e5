"""What a hyper-parameter's value may be. A name means the same in every signature."""

from __future__ import annotations

from typing import NamedTuple

LARGEST = 1e30  # far from where float32 ends, so that one step of it is still finite


class Limit(NamedTuple):
    """`low <= value <= LARGEST`, or `low < value <= LARGEST` where `open_below`."""

    low: float
    open_below: bool
    words: str

    def allows(self, value: float) -> bool:
        above = value > self.low if self.open_below else value >= self.low
        return above and value <= LARGEST


NON_NEGATIVE = Limit(0.0, False, f"a finite number >= 0, up to {LARGEST:g}")
POSITIVE = Limit(0.0, True, f"a finite number > 0, up to {LARGEST:g}")

LIMITS = {"l1": NON_NEGATIVE, "bias_decay": NON_NEGATIVE}
