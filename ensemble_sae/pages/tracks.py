"""Features over time: learned, unlearned, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ensemble_sae.pages import figures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PANELS = (
    ("learned", "Learned now"),
    ("unlearned", "Unlearned: learned before, not now"),
    ("same_entry", "Learned, in the same entry"),
)


def tracks(counts: Mapping[str, pd.DataFrame], legend: str) -> Figure:
    """A curve for each name in three panels.

    Args:
        counts: `History.counts` by the name of a member.
        legend: what the names are.
    """
    with figures.figure(1, len(PANELS), (4.6, 3.8)) as (made, axes):
        for place, (column, title) in zip(axes.flat, PANELS, strict=True):
            series = [(name, own.index, own[column]) for name, own in counts.items()]
            figures.curves(place, series, title=title, x="training step", y="features")
            place.set_ylim(bottom=0)
        axes[0, -1].legend(title=legend, loc="center left", bbox_to_anchor=(1, 0.5))
        return made
