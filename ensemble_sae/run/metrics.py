"""`metrics.jsonl`: one line per member and chunk.

It holds nothing that a second run of the same sweep would not write too: no times, no machine.
So a resumed run's file equals an undisturbed one's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ensemble_sae.files import write_atomically

Row = dict[str, Any]


class MetricsLog:
    """Appends the rows of finished rounds; what lies behind a checkpoint can be cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows at the end; they are on the disk before a checkpoint behind them can be."""
        text = "".join(_line(row) for row in rows)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def rows_from(self, first_round: int) -> list[Row]:
        """The rows of `first_round` and later."""
        there = self.path.is_file()
        return [row for row in read_rows(self.path) if row["round"] >= first_round] if there else []

    def cut(self, first_round: int) -> None:
        """Keep only complete rows of rounds before `first_round`."""
        if not self.path.is_file():
            return
        kept = [row for row in read_rows(self.path) if row["round"] < first_round]
        text = "".join(_line(row) for row in kept)
        write_atomically(self.path, lambda p: p.write_text(text, encoding="utf-8"))


def read_rows(path: Path) -> list[Row]:
    """All complete rows; a last line that was cut short by a crash is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def finite(row: Row) -> Row:
    """The row with None where a value is not finite, as JSON needs it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _line(row: Row) -> str:
    return json.dumps(finite(row), allow_nan=False) + "\n"
