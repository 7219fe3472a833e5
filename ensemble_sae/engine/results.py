"""What a finished run leaves: the members' table, on disk and on screen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ensemble_sae.files import write_atomically, write_json
from ensemble_sae.metrics.reconstruction import pareto
from ensemble_sae.run.layout import SCHEMA_VERSION, Layout
from ensemble_sae.sweep import Group, Member

if TYPE_CHECKING:
    import pandas as pd


def write_members(layout: Layout, groups: list[Group], status: Mapping[int, str]) -> None:
    """`members.json`: every member's configuration, group and status."""
    group_of = {member.id: group.name for group in groups for member in group.members}
    members = sorted((m for group in groups for m in group.members), key=lambda m: m.id)
    rows = [{**asdict(m), "group": group_of[m.id], "status": status[m.id]} for m in members]
    write_json(layout.members, {"schema_version": SCHEMA_VERSION, "members": rows})


def make_table(
    members: list[Member],
    groups: list[Group],
    status: Mapping[int, str],
    evaluated: list[dict[str, Any]],
) -> pd.DataFrame:
    """One row per member: configuration, status, held-out metrics, whether Pareto-best."""
    import pandas as pd

    group_of = {member.id: group.name for group in groups for member in group.members}
    found = {row["id"]: row for row in evaluated}
    rows = [
        {**m.as_row(), "group": group_of[m.id], "status": status[m.id], **found.get(m.id, {})}
        for m in members
    ]
    table = pd.DataFrame(rows).astype({"grad_clip": float})
    for column in ("fvu", "l0", "dead"):
        if column not in table:
            table[column] = math.nan
    table["pareto"] = False
    whole = table[table["status"] == TRAINED]
    for _, same in whole.groupby("hook"):  # rows of different hooks cannot be compared
        table.loc[same.index, "pareto"] = pareto(same["fvu"].tolist(), same["l0"].tolist())
    return table


def write_table(layout: Layout, table: pd.DataFrame) -> None:
    """`metrics.parquet`, for pandas and for `load`."""
    write_atomically(layout.table, lambda path: table.to_parquet(path, index=False))


def print_table(table: pd.DataFrame, console: Console) -> None:
    """All members, then the frontier: Pareto-best members are marked with a star."""
    axes = [
        name
        for name in ("hook", "signature", "dict_ratio", "n_dict", "l1", "lr", "grad_clip", "seed")
        if name in table and table[name].nunique(dropna=False) > 1
    ]
    own = [c for c in table.columns[list(table.columns).index("seed") + 1 :] if c not in NOT_AXES]
    axes += [name for name in own if name not in axes and table[name].nunique(dropna=False) > 1]
    if "dict_ratio" in axes:
        axes.remove("n_dict")
    ordered = table.sort_values([a for a in axes if a != "l1"] + (["l1"] if "l1" in axes else []))
    console.print(_rich("All members", ordered, axes))
    best = table[table["pareto"]].sort_values("l0")
    console.print(_rich(f"Pareto-best: {len(best)} of {len(table)} members", best, axes))


NOT_AXES = ("group", "status", "fvu", "l0", "dead", "density_histogram", "pareto")
HEADS = {"dict_ratio": "ratio", "bias_decay": "bias decay", "n_dict": "features"}


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
    for row in table.to_dict("records"):
        cells = ["★" if row["pareto"] else "", str(row["id"])]
        cells += [_cell(row[name], name) for name in axes]
        cells += [_fixed(row["l0"], 1), _fixed(row["fvu"], 4), _percent(row["dead"])]
        if frozen:
            cells.append("" if row["status"] == TRAINED else row["status"])
        shown.add_row(*cells, style="bold" if row["pareto"] else None)
    return shown


WORDS = ("hook", "signature")
TRAINED = "trained"


def _cell(value: Any, name: str) -> str:
    if name in WORDS:
        return str(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.2e}" if name in ("l1", "lr") else f"{value:g}"


def _fixed(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}%"
