"""The members' table as the page has it, and the axes along which it can be cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensemble_sae.reporting.plain import plain
from ensemble_sae.reporting.words import METRICS, word
from ensemble_sae.run.axes import FOUND, axes

if TYPE_CHECKING:
    import pandas as pd

FEW = 24  # values of an axis that are boxes to tick; of more, from .. to
HIDDEN = ("density_histogram", "group", "widths")


def members(table: pd.DataFrame, more: dict[str, pd.Series]) -> dict[str, Any]:
    """Columns by name, in the order in which they are shown, and what they are called.

    Args:
        table: `run.members`. more: further metrics by id, where they are known.
    """
    found = table.assign(**{name: values.reindex(table.index) for name, values in more.items()})
    varied = axes(table)
    metrics = [n for n in METRICS if n in found and found[n].notna().any()]
    others = [c for c in table.columns if c not in (*varied, *FOUND, *HIDDEN, "name")]
    constant = [c for c in others if table[c].nunique(dropna=False) == 1 and table[c].notna().all()]
    own = [c for c in others if c not in constant and table[c].notna().any()]
    shown = [
        "name",
        *varied,
        *metrics,
        "pareto",
        "status",
        "flags",
        "dead_features",
        *own,
        *constant,
    ]
    found["dead_features"] = (found["dead"] * found["n_dict"]).round()
    order = list(dict.fromkeys(n for n in shown if n in found and n not in HIDDEN))
    return {
        "ids": [int(member) for member in found.index],
        "columns": {name: [plain(v) for v in found[name].tolist()] for name in order},
        "axes": [_axis(found, name) for name in varied],
        "metrics": metrics,
        "own": own,
        "constant": constant,
        "words": {name: word(name)._asdict() for name in order},
    }


def _axis(table: pd.DataFrame, name: str) -> dict[str, Any]:
    """An axis and its values, in order; without them where there are too many to tick."""
    values = table[name].dropna().unique().tolist()
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    ordered = sorted(values) if numbers else sorted(values, key=str)
    some_lack_it = bool(table[name].isna().any())
    told: dict[str, Any] = {"name": name, "numbers": numbers, "lacking": some_lack_it}
    if len(ordered) <= FEW or not numbers:
        return told | {"values": plain(ordered)}
    return told | {"from": plain(ordered[0]), "to": plain(ordered[-1])}
