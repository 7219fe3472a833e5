"""The members' table on screen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ensemble_sae.engine.results import TRAINED
from ensemble_sae.run.axes import axes as varying

if TYPE_CHECKING:
    import pandas as pd

HEADS = {"dict_ratio": "ratio", "bias_decay": "bias decay", "n_dict": "features"}
WORDS = ("hook", "signature", "init", "name")
MOST_AXES = 7  # more columns than that and a member's name says it better


def print_table(table: pd.DataFrame, console: Console) -> None:
    """All members, then the frontier: Pareto-best members are marked with a star."""
    axes = varying(table)
    ordered = table.sort_values([a for a in axes if a != "l1"] + (["l1"] if "l1" in axes else []))
    if len(axes) > MOST_AXES:
        ordered, axes = table, (["hook"] if "hook" in axes else []) + ["name"]
    console.print(_rich("All members", ordered, axes))
    best = table[table["pareto"]].sort_values("l0")
    console.print(_rich(f"Pareto-best: {len(best)} of {len(table)} members", best, axes))


def _rich(title: str, table: pd.DataFrame, axes: list[str]) -> Table:
    shown = Table(title=title, title_justify="left", header_style="bold", pad_edge=False, box=None)
    shown.add_column("", width=1)
    shown.add_column("id", justify="right")
    for name in axes:
        shown.add_column(HEADS.get(name, name), justify="left" if name in WORDS else "right")
    for name in ("L0", "FVU", "dead"):
        shown.add_column(name, justify="right")
    frozen = bool((table["status"] != TRAINED).any())
    if frozen:
        shown.add_column("status")
    flagged = bool((table["flags"] != "").any())
    if flagged:
        shown.add_column("flags")
    for row in table.to_dict("records"):
        cells = ["★" if row["pareto"] else "", str(row["id"])]
        cells += [_cell(row[name], name) for name in axes]
        cells += [_fixed(row["l0"], 1), _fixed(row["fvu"], 4), _percent(row["dead"])]
        if frozen:
            cells.append("" if row["status"] == TRAINED else row["status"])
        if flagged:
            cells.append(row["flags"])
        shown.add_row(*cells, style="bold" if row["pareto"] else None)
    return shown


def _cell(value: Any, name: str) -> str:
    if name in WORDS:
        return str(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | bool):
        return str(value).lower()
    return f"{value:.2e}" if name in ("l1", "l0_coefficient", "lr") else f"{value:g}"


def _fixed(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}%"
