"""In what the members of a run differ: the axes of its grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COMMON = ("hook", "signature", "dict_ratio", "n_dict", "l1", "lr", "grad_clip", "seed")
FOUND = (
    *("group", "status", "fvu", "l0", "dead", "density_histogram", "pareto", "penalty_factor"),
    *("finished_at", "min_cosine", "axis_share", "ultra_low_density", "flags"),
)


def axes(table: pd.DataFrame) -> list[str]:
    """The columns in which members differ: any of the common ones, own ones within a signature.

    Args:
        table: `run.members`.
    """
    found = [n for n in COMMON if n in table and table[n].nunique(dropna=False) > 1]
    own = [c for c in table.columns[list(table.columns).index("seed") + 1 :] if c not in FOUND]
    for name in own:
        within = table.groupby("signature")[name].nunique(dropna=True)
        if name not in found and within.max() > 1:
            found.append(name)
    return [name for name in found if name != "n_dict" or "dict_ratio" not in found]
