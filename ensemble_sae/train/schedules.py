"""Factors that change with the step. A step counts from 0; the first update is step 0."""

from __future__ import annotations

from dataclasses import dataclass


def warmup(step: int, steps: int) -> float:
    """Linear rise: `(step + 1) / steps` until it reaches 1; always 1 for `steps` = 0."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


@dataclass(frozen=True)
class Schedule:
    """What all members of an ensemble share over time.

    Args:
        lr_warmup: updates until the learning rate is whole.
        l1_warmup: updates until the sparsity penalty is whole.
    """

    lr_warmup: int = 0
    l1_warmup: int = 0

    def lr(self, step: int) -> float:
        """The factor on every member's learning rate."""
        return warmup(step, self.lr_warmup)

    def l1(self, step: int) -> float:
        """The factor on every member's `l1` buffer."""
        return warmup(step, self.l1_warmup)
