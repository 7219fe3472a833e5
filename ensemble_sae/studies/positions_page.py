"""The page of the study of positions: which figures, in which order, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ensemble_sae.analysis.position_curves import PositionAxes, PositionCurves, Traced
from ensemble_sae.analysis.positions import PositionScores
from ensemble_sae.errors import UserError
from ensemble_sae.lm.embeddings import Embeddings
from ensemble_sae.pages.page import Page
from ensemble_sae.run import Run
from ensemble_sae.studies import positions_figures as figures

SHOWN = 6  # members with a curve of their own
ABOUT = (
    "What the first block of a language model with learned positions reads is a token's embedding "
    "plus its position's. Dictionaries of these rows have features of tokens and, if they are to "
    "reconstruct them, features of positions. Which are they, how do they tell the position, and "
    "what do they do at positions that were never trained on?"
)
ENUMERATED = (
    "Scores are exact: every token at every trained position was encoded, {tokens:,} x {positions} "
    "rows, and each counts the same."
)
SAMPLED = "Scores are estimated from held-out text. Why not from the embeddings: {why}"
TABLE = (
    "positional: features whose position score is above their token score. By share: features of "
    "whose variance position alone explains more than half, which is another way to say it. "
    "Positions told: share of the variance of the position embeddings that the positional features "
    "reconstruct together. L0 and FVU: on held-out text within the trained context; past: at all "
    "later positions; at the end: at the last quarter of these. FVU is always the error over the "
    "variance within the trained context."
)
FORMS = {
    "n_dict": "{:,.0f}",
    "positional": "{:.0f}",
    "by share": "{:.0f}",
    "positions told": "{:.2f}",
    "L0": "{:.1f}",
    "FVU": "{:.3f}",
    "FVU past": "{:.3f}",
    "FVU at the end": "{:.3f}",
    "L0 at the end": "{:.1f}",
}
SCORES = (
    "A point for each feature. Upwards, the position score: the largest over positions of the mean "
    "activation over tokens. To the right, the token score: the largest over tokens of the mean "
    "activation over positions. Above the line, where the position score is the larger one, "
    "features are called positional (crosses). Features that are silent on all these rows are left "
    "out."
)
PCA = (
    "The position embeddings on their principal axes, which explain {share} of the variance of "
    "positions {first} to {last}: dots, coloured by position; grey ones were not trained on. "
    "Crosses: each positional feature of {name} at its peak, the atom times the position score. "
    "Line: all of them together, the sum of the atoms times their mean activation at each "
    "position; dashed past the trained context."
)
HEAT = (
    "The positional features of all members, a row each, sorted by the position of their peak: "
    "mean activation over tokens, as a share of the largest within the trained context (orange "
    "where it is above that). The line is the end of the trained context."
)
CURVES = (
    "Mean activation over tokens against position, of the positional features of {name} with the "
    "highest scores. The dotted line is the end of the trained context."
)
ALONG = (
    "On held-out text, at each position: FVU, active features per row, and active positional "
    "features per row. The dotted line is the end of the trained context."
)
NONE = "No feature of any member has a position score above its token score."


@dataclass(frozen=True)
class Found:
    """What was found of one member; `told` where the embeddings are known."""

    scores: PositionScores
    curves: PositionCurves
    told: Traced | None


def draw(
    page: Page,
    run: Run,
    table: pd.DataFrame,
    found: dict[int, Found],
    axes: PositionAxes | None,
    known: Embeddings | UserError,
) -> None:
    """Write the study onto its page."""
    names = table["member"].to_dict()
    context = next(iter(found.values())).scores.span[1]
    page.heading("What came out")
    if isinstance(known, Embeddings):
        page.text(ENUMERATED.format(tokens=len(known.tokens), positions=context - 1))
    else:
        page.text(SAMPLED.format(why=f"{known.what} ({known.found})"))
    page.points(findings(table, axes))
    page.table(table.set_index("member"), TABLE, FORMS)
    shown = several(table)
    page.heading("Which features are positional")
    page.figure("scores", figures.scores({names[m]: found[m].scores for m in shown[:4]}), SCORES)
    most = table["positional"] if axes is None else table["positions told"]
    best = int(str(most.idxmax()))
    if table.loc[best, "positional"] == 0:
        page.text(NONE)
    else:
        _features(page, run, best, str(names[best]), found, axes)
    page.heading("Past the trained context")
    curves = {names[m]: found[m].curves for m in shown}
    page.figure("along", figures.along(curves, context), ALONG)


def several(table: pd.DataFrame) -> list[int]:
    """Members to show: of each kind the sparsest and the densest; the kinds take turns."""
    kinds = table["member"].str.split().str[0]
    chosen: list[int] = []
    for pick in (pd.Series.idxmin, pd.Series.idxmax):
        chosen += [int(str(pick(own))) for _, own in table["L0"].groupby(kinds, sort=False)]
    return list(dict.fromkeys(chosen))[:SHOWN]


def findings(table: pd.DataFrame, axes: PositionAxes | None) -> list[str]:
    """In this run's numbers."""
    few, many = table["positional"].min(), table["positional"].max()
    agree = (table["positional"] - table["by share"]).abs().max()
    lines = [
        f"positional features: {few} to {many} of a dictionary's {_range(table['n_dict'])}; those "
        f"with more than half of their variance by position are as many, or {agree} more or fewer "
        "in a member.",
    ]
    if axes is not None:
        lines += [
            f"{len(axes.share)} components explain {100 * float(axes.share.sum()):.0f}% of the "
            "variance of the trained position embeddings.",
            "the positional features tell "
            f"{_range(100 * table['positions told'], '{:.0f}%')} of the variance of the trained "
            "position embeddings.",
        ]
    if "FVU past" in table:
        lines.append(
            f"FVU goes from {_range(table['FVU'], '{:.2f}')} within the trained context to "
            f"{_range(table['FVU at the end'], '{:.2f}')} at the last positions."
        )
    return lines


def _range(values: pd.Series[float], form: str = "{:,.0f}") -> str:
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"


def _features(
    page: Page, run: Run, best: int, name: str, found: dict[int, Found], axes: PositionAxes | None
) -> None:
    """Figures that need a positional feature."""
    own = found[best]
    start, stop = own.scores.span
    page.figure("curves", figures.curves_of(own.scores), CURVES.format(name=name))
    every = [one.scores for one in found.values()]
    page.figure("heat_map", figures.heat_map(every), HEAT)
    if axes is not None and own.told is not None:
        page.heading("The axes of the position embeddings")
        share = " + ".join(f"{100 * float(part):.0f}%" for part in axes.share)
        drawn = figures.pca(axes, own.told, own.scores, run.sae(best))
        caption = PCA.format(share=share, first=start, last=stop - 1, name=name)
        page.figure("pca", drawn, caption)
