"""How far the making of stores is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Rows done and to do, and the speed of this call."""

    rows: int  # done, those of earlier calls too
    rows_total: int | None  # None: until the data set ends
    rows_per_second: float  # of this call

    @property
    def seconds_left(self) -> float | None:
        """The estimate at the present speed; None if it cannot be known."""
        if self.rows_total is None or not self.rows_per_second:
            return None
        return (self.rows_total - self.rows) / self.rows_per_second
