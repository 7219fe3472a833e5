"""What the page draws of members over training, over positions and over how often features fire."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.metrics.reconstruction import BINS_PER_DECADE, LOWEST_DECADE
from ensemble_sae.reporting.plain import plain, thinned
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

POINTS = 200  # of a curve
FIRST, BLOCKS = 4, 32  # positions of a context by themselves; blocks of the others, about
SERIES = ("fvu", "l0", "loss")


def training(run: Run) -> dict[str, Any]:
    """Per member: `step` and each of `SERIES` at the end of rounds, at most `POINTS` of them."""
    metrics = run.metrics
    found = {}
    for member, own in metrics.groupby("member") if len(metrics) else ():
        rows = own.sort_values("step").iloc[thinned(len(own), POINTS)]
        found[str(member)] = {
            name: plain(rows[name].tolist()) for name in ("step", *SERIES) if name in rows
        }
    return found


def densities(table: pd.DataFrame) -> dict[str, Any]:
    """Per member: features by how often they fire. First the dead ones, then by bins of log10."""
    if "density_histogram" not in table:
        return {}
    edges = [LOWEST_DECADE + i / BINS_PER_DECADE for i in range(-LOWEST_DECADE * BINS_PER_DECADE)]
    known = table["density_histogram"].dropna()
    return {
        "lowest": plain(edges),
        "width": 1 / BINS_PER_DECADE,
        "counts": {str(member): plain(list(counts)) for member, counts in known.items()},
    }


def evaluated(run: Run) -> dict[str, Any]:
    """What the language model makes of members; nothing where nobody has asked.

    `references` by hook; `position` and `frequency`: per quantity and member, along the context
    and by how frequent the token is.
    """
    try:
        found = run.evaluation
    except CorruptFile:
        raise
    except UserError:
        return {}
    told: dict[str, Any] = {
        "references": plain(found.references),
        "bands": [str(band) for band in found.settings["bands"]],
        "about": {k: plain(found.settings[k]) for k in ("model", "dataset") if k in found.settings},
        "position": {},
        "frequency": {},
    }
    for quantity in ("ce", "kl", "fvu", "l0"):
        along: Any = found.by_position(quantity)
        told["position"][quantity] = _profiles(_blocked(_whole(along)))
        told["frequency"][quantity] = _profiles(_whole(found.by_frequency(quantity)))
    return told


def _whole(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by member, those for all features."""
    rows = table[table.index.get_level_values("features") == "all"]
    return rows.droplevel("features")


def _blocked(table: pd.DataFrame) -> pd.DataFrame:
    """Means over blocks of positions, the first ones by themselves; columns are their middles."""
    import pandas as pd

    width = table.shape[1]
    size = max(1, round(width / BLOCKS))
    ends = [*range(min(FIRST, width)), *range(min(FIRST, width), width, size), width]
    blocks = [table.iloc[:, a:b] for a, b in pairwise(ends)]
    middles = [(a + b - 1) / 2 for a, b in pairwise(ends)]
    return pd.DataFrame({m: b.mean(axis=1) for m, b in zip(middles, blocks, strict=True)})


def _profiles(table: pd.DataFrame) -> dict[str, Any]:
    rows = {str(member): plain(row.tolist()) for member, row in table.iterrows()}
    return {"places": plain(list(table.columns)), "of": rows}
