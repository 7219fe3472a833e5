"""What a finished run leaves: the members' table, on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ensemble_sae.files import write_atomically, write_json
from ensemble_sae.metrics.reconstruction import pareto
from ensemble_sae.run.layout import SCHEMA_VERSION, Layout
from ensemble_sae.sweep import Group, Member, as_rows

if TYPE_CHECKING:
    import pandas as pd

TRAINED = "trained"


def write_members(layout: Layout, groups: list[Group], status: Mapping[int, str]) -> None:
    """`members.json`: every member's configuration, group and status."""
    group_of = {member.id: group.name for group in groups for member in group.members}
    members = sorted((m for group in groups for m in group.members), key=lambda m: m.id)
    rows = [{**asdict(m), "group": group_of[m.id], "status": status[m.id]} for m in members]
    write_json(layout.members, {"schema_version": SCHEMA_VERSION, "members": rows})


def statuses(
    members: Sequence[Member], frozen: Mapping[int, int], evaluated: Sequence[Mapping[str, Any]]
) -> dict[int, str]:
    """How each member's training ended.

    Args:
        frozen: id -> the step whose loss or gradient was not finite.
        evaluated: rows of the table; `finished_at` where nothing was left to learn.
    """
    found = {member.id: TRAINED for member in members}
    for row in evaluated:
        if "finished_at" in row:
            found[row["id"]] = f"finished at step {row['finished_at']}: all its features are frozen"
    return found | {id: f"frozen at step {step}" for id, step in frozen.items()}


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
        {**row, "group": group_of[m.id], "status": status[m.id], **found.get(m.id, {})}
        for m, row in zip(members, as_rows(members), strict=True)
    ]
    table = pd.DataFrame(rows).astype({"grad_clip": float})
    for column in ("fvu", "l0", "dead", "min_cosine", "axis_share", "ultra_low_density"):
        if column not in table:
            table[column] = math.nan
    table["flags"] = table["flags"].fillna("") if "flags" in table else ""
    table["pareto"] = False
    whole = table[~table["status"].str.startswith("frozen")]
    for _, same in whole.groupby("hook"):  # rows of different hooks cannot be compared
        table.loc[same.index, "pareto"] = pareto(same["fvu"].tolist(), same["l0"].tolist())
    return table


def write_table(layout: Layout, table: pd.DataFrame) -> None:
    """`metrics.parquet`, for pandas and for `load`."""
    write_atomically(layout.table, lambda path: table.to_parquet(path, index=False))
