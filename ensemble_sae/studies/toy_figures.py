"""The figures of the study on synthetic rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.synthetic import chunk_of_rows, codes
from ensemble_sae.data.truth import Truth
from ensemble_sae.metrics.matching import by_frequency, representedness
from ensemble_sae.pages import figures
from ensemble_sae.run import Run
from ensemble_sae.studies.steps import Tell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECAYS = (0.8, 0.9, 0.97, 1.0)
ROWS = 1500  # of a t-SNE picture
SHOWN = 10  # features that have a colour there
SIZE = "dictionary size / row width"


def heat_maps(table: pd.DataFrame) -> Figure:
    """Six numbers over (l1, ratio) of one data set."""
    table = table.assign(fvu=table["fvu"].clip(upper=1))
    panels: list[tuple[str, str, str, tuple[float, float] | None, Any]] = [
        ("mmcs", "MMCS with the truth", "{:.2f}", (0, 1), np.nanargmax),
        ("represented", "true features represented", "{:.2f}", (0, 1), np.nanargmax),
        ("fvu", "FVU", "{:.2f}", (0, 1), None),
        ("l0", "L0, active features per row", "{:.3g}", None, None),
        ("dead", "dead, share of features", "{:.2f}", (0, 1), None),
        ("mmcs_truth", "MMCS of the truth", "{:.2f}", (0, 1), np.nanargmax),
    ]
    with figures.figure(3, 2, (6.2, 3.2)) as (made, axes):
        for place, (column, title, form, span, best) in zip(axes.flat, panels, strict=True):
            grid = table.pivot(index="l1", columns="dict_ratio", values=column)
            figures.heat_map(place, grid, title, form=form, span=span, best=best)
            place.set_xlabel(SIZE)
            place.set_ylabel("penalty l1")
        return made


def dead(table: pd.DataFrame, features: int) -> Figure:
    """Dead features against the size of the dictionary."""
    count = (table["dead"] * table["n_dict"]).round()
    series = [
        (f"{l1:.2g}", own["n_dict"], count[own.index] + 0.5)
        for l1, own in table.sort_values("n_dict").groupby("l1")
    ]
    with figures.figure(1, 1, (8, 4.5)) as (made, axes):
        place = axes[0, 0]
        figures.curves(
            place,
            series,
            title="Dead features",
            x="features in the dictionary",
            y="dead features (+ 1/2, so that none can be drawn)",
            log="xy",
            legend="penalty l1",
        )
        sizes = sorted(table["n_dict"].unique())
        place.plot(sizes, sizes, ":", color=figures.GREY, lw=1)
        place.axvline(features, ls="--", color=figures.GREY, lw=1)
        place.set_xticks(sizes, [f"{n:,}" for n in sizes])
        place.minorticks_off()
        place.legend(title="penalty l1", loc="center left", bbox_to_anchor=(1, 0.5))
        return made


def by_frequency_of(run: Run, best: pd.DataFrame, truth: Truth) -> Figure:
    """How well true features are represented, against how often they are active."""
    series = []
    for member, ratio in best["dict_ratio"].items():
        seen = representedness(truth.atoms, run.sae(int(str(member))).dictionary)
        groups = by_frequency(seen, truth.frequency)
        middle = [(group.lowest * group.highest) ** 0.5 for group in groups]
        series.append((f"{ratio:g}", middle, [group.mean for group in groups]))
    with figures.figure(1, 1, (8, 4.5)) as (made, axes):
        figures.curves(
            axes[0, 0],
            series,
            title="Representedness of true features",
            x="share of rows in which the feature is active",
            y="largest cosine with an atom",
            log="x",
        )
        axes[0, 0].set_ylim(0, 1.02)
        axes[0, 0].legend(title="size / width", loc="center left", bbox_to_anchor=(1, 0.5))
        return made


def tsne(recipe: SyntheticRecipe, tell: Tell) -> Figure:
    """Pictures of rows, for several decays of the features' frequency."""
    tell(0, len(DECAYS))
    with figures.figure(1, len(DECAYS), (3.6, 3.9)) as (made, axes):
        for done, (place, decay) in enumerate(zip(axes.flat, DECAYS, strict=True), 1):
            _picture(place, recipe.model_copy(update={"decay": decay}))
            place.set_title(f"decay {decay:g}")
            tell(done, len(DECAYS))
        return made


def _picture(place: Axes, recipe: SyntheticRecipe) -> None:
    from sklearn.manifold import TSNE

    code = codes(recipe, "uncorrelated", ROWS, 0)
    rows = chunk_of_rows(recipe, "uncorrelated", ROWS, 0)
    some = code.sum(1) > 0  # rows without a feature are one point
    strongest = code[some].argmax(1).numpy()
    flat: Any = TSNE(random_state=0, init="pca").fit_transform(rows[some].numpy())
    shown = strongest < SHOWN
    x, y = flat.T
    place.scatter(x[~shown], y[~shown], s=3, color="#bbbbbb")
    colours = strongest[shown]
    place.scatter(x[shown], y[shown], s=5, c=colours, cmap="tab10", vmin=0, vmax=SHOWN - 1)
    place.set_xticks([])
    place.set_yticks([])
    place.set_xlabel("t-SNE 1")
    place.set_ylabel("t-SNE 2")
