"""Two quantities of all members against each other, and the frontier: a figure to hover over."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_sae.errors import UserError, nearest
from ensemble_sae.pages.figures import COLOURS

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

TITLES = {
    "l0": "L0: active features per row",
    "fvu": "FVU: fraction of variance unexplained",
    "ce_recovered": "CE recovered: 0 with zeros, 1 undisturbed",
    "ce": "cross-entropy of the next token, nats",
    "kl": "KL from the undisturbed model, nats per token",
    "perplexity": "perplexity of the next token",
    "dead": "share of features that never fire",
    "dict_ratio": "ratio: features / width of a row",
    "n_dict": "features",
}
LOGARITHMIC = ("l0", "kl", "perplexity", "l1", "l0_coefficient", "lr", "n_dict", "dict_ratio")
ALWAYS_TOLD = ("fvu", "l0", "ce_recovered", "dead", "flags")
UPWARDS = ("ce_recovered",)  # more is better
# Blue, teal, green, gold: an order that all kinds of colour vision see, on white and on black.
SCALE = ("#3b62c4", "#1f9a9a", "#6fbf58", "#e0b436")
INK, LINES = "#7a7a7a", "rgba(128, 128, 128, 0.25)"  # legible on white and on black
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
SIZE = (760, 460)
MOST_STEPS = 9  # of a scale of colours; more values than that shade into each other


def frontier(table: pd.DataFrame, x: str = "l0", y: str = "fvu") -> pd.DataFrame:
    """Members that no other of their hook beats: none is as good in both, better in one.

    Less is better, or more of CE recovered. Frozen members are left out, and of
    equals the first is chosen, as for the column `pareto`.

    Returns:
        Their rows, by hook and from the best x on.
    """
    import pandas as pd

    along, sign = (-1 if name in UPWARDS else 1 for name in (x, y))
    whole = table[np.isfinite(table[x]) & np.isfinite(table[y])]
    whole = whole[~whole["status"].str.startswith("frozen")]
    found = []
    for _, same in whole.groupby("hook"):
        ordered = same.assign(_x=along * same[x], _y=sign * same[y])
        ordered = ordered.sort_values(["_x", "_y"], kind="stable")
        best = ordered["_y"].cummin().shift(fill_value=np.inf)
        found.append(ordered[ordered["_y"] < best].drop(columns=["_x", "_y"]))
    return pd.concat(found) if found else whole


def plot(
    table: pd.DataFrame,
    *,
    x: str = "l0",
    y: str = "fvu",
    colour: str | None = None,
    varied: Sequence[str] = (),
) -> Figure:
    """All members as points, the frontier of each hook as a line.

    Args:
        table: one row per member: configuration, `x`, `y`, `status`, `hook`.
        x, y: columns with numbers.
        colour: a column; by default the first that varies of ratio, size and penalty.
        varied: columns in which members differ, which are told on hovering.

    Raises:
        UserError: no such column, or no member has numbers in both.
    """
    import plotly.graph_objects as go

    for name in (x, y, *([colour] if colour else [])):
        if name not in table:
            allowed = nearest(name, list(map(str, table.columns)))
            raise UserError(f"Members have no column {name!r}.", allowed=allowed)
    for name in (x, y):
        if table[name].dtype.kind not in "iuf":
            raise UserError("An axis needs numbers.", found=f"{name}: {table[name].dtype}")
    shown = table[np.isfinite(table[x]) & np.isfinite(table[y])]
    if shown.empty:
        raise UserError("No member has numbers for both axes.", found=f"{x}, {y}")
    colour = colour or _first_varying(shown)
    figure = go.Figure(layout={"template": _template()})
    _lines(figure, frontier(shown, x, y), x, y)
    told = list(dict.fromkeys(n for n in (*varied, x, y, *ALWAYS_TOLD) if n in shown))
    numeric = colour is not None and shown[colour].dtype.kind in "iuf"
    groups = ["signature"] if numeric or colour in (None, "signature") else ["signature", colour]
    for number, (names, own) in enumerate(shown.groupby(groups, sort=False, dropna=False)):
        marker = _marker(shown, own, colour if numeric else None, groups, number)
        name = _safe(", ".join(map(str, names)))
        hovers = [_hover(member, row, told) for member, row in own.iterrows()]
        own_points: dict[str, Any] = {
            **{"x": own[x].tolist(), "y": own[y].tolist(), "customdata": list(map(int, own.index))},
            **{"text": hovers, "hovertemplate": "%{text}<extra></extra>"},
        }
        same: dict[str, Any] = {"mode": "markers", "name": name, "legendgroup": name}
        figure.add_scatter(marker=marker, showlegend=not numeric, **same, **own_points)
        if numeric:  # a colour for each point leaves none for the legend
            figure.add_scatter(x=[None], y=[None], marker=_in_legend(marker), **same)
    for axis, column in (("x", x), ("y", y)):
        log = column in LOGARITHMIC and bool((shown[column] > 0).all())
        figure.update_layout({f"{axis}axis": _axis(column, log)})
    if numeric and colour is not None:
        figure.update_layout(coloraxis=_colours(shown[colour], colour))
    left_out = len(table) - len(shown)
    note = f", {left_out} without numbers left out" if left_out else ""
    figure.update_layout(title={"text": f"{len(shown)} members{note}"})
    return figure


def shades(values: Sequence[float]) -> list[str]:
    """A colour of the scale for each of some values, the lowest first, as `#rrggbb`."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in SCALE], float)
    places = np.linspace(0, len(SCALE) - 1, max(2, len(values)))[: len(values)]
    mixed = [np.interp(places, range(len(SCALE)), stops[:, part]) for part in range(3)]
    return ["#{:02x}{:02x}{:02x}".format(*map(round, rgb)) for rgb in zip(*mixed, strict=True)]


def _first_varying(table: pd.DataFrame) -> str | None:
    several = (n for n in ("dict_ratio", "n_dict", "l1") if n in table and table[n].nunique() > 1)
    return next(several, None)


def _lines(figure: Figure, best: pd.DataFrame, x: str, y: str) -> None:
    """A line for the frontier of each hook."""
    hooks = list(dict.fromkeys(best["hook"]))
    for number, hook in enumerate(hooks):
        own = best[best["hook"] == hook]
        name = "frontier" if len(hooks) == 1 else f"frontier, {hook}"
        line = {"color": INK, "width": 1.5, "dash": ("solid", "dash", "dot", "dashdot")[number % 4]}
        points = {"x": own[x].tolist(), "y": own[y].tolist()}
        figure.add_scatter(
            mode="lines", name=_safe(name), line=line, hoverinfo="skip", legendrank=2000, **points
        )


def _marker(
    shown: pd.DataFrame, own: pd.DataFrame, colour: str | None, groups: list[str], number: int
) -> dict[str, Any]:
    """A symbol for the signature; a colour for a number or, where there is none, for a word."""
    signatures = list(dict.fromkeys(shown["signature"]))
    mark = MARKS[signatures.index(own["signature"].iloc[0]) % len(MARKS)]
    look: dict[str, Any] = {"symbol": mark, "size": 8, "opacity": 0.85}
    if colour is not None:
        values = own[colour].to_numpy(float)
        places = np.searchsorted(_levels(shown[colour]), values).astype(float)
        places[~np.isfinite(values)] = np.nan
        return look | {"color": places.tolist(), "coloraxis": "coloraxis"}
    if len(groups) > 1:
        words = list(dict.fromkeys(shown[groups[1]].astype(str)))
        number = words.index(str(own[groups[1]].iloc[0]))
    return look | {"color": COLOURS[number % len(COLOURS)]}


def _in_legend(marker: dict[str, Any]) -> dict[str, Any]:
    return {"symbol": marker["symbol"], "size": marker["size"], "color": INK}


def _levels(values: pd.Series) -> Any:
    """The values of a column, ascending: colours are of their order, one step each."""
    return np.unique(values[np.isfinite(values)].to_numpy(float))


def _colours(values: pd.Series, name: str) -> dict[str, Any]:
    levels = _levels(values)
    every = max(1, -(-len(levels) // MOST_STEPS))
    bar = {
        "title": {"text": TITLES.get(name, name).split(":")[0]},
        "tickvals": list(range(0, len(levels), every)),
        "ticktext": [f"{value:.3g}" for value in levels[::every]],
        "thickness": 12,
        "len": 0.55,
        "y": 0.28,
        "outlinewidth": 0,
    }
    last = len(levels) - 1
    if every > 1:
        return {"colorscale": list(SCALE), "cmin": 0, "cmax": last, "colorbar": bar}
    edges = np.linspace(0, 1, len(levels) + 1)
    steps = [
        [float(edge), colour]
        for number, colour in enumerate(shades(levels))
        for edge in edges[number : number + 2]
    ]
    return {"colorscale": steps, "cmin": -0.5, "cmax": last + 0.5, "colorbar": bar}


def _axis(column: str, log: bool) -> dict[str, Any]:
    title = {"title": {"text": TITLES.get(column, column)}}
    if not log:
        return title
    return title | {"type": "log", "dtick": "D2", "tickformat": "~g", "exponentformat": "none"}


def _template() -> dict[str, Any]:
    """No background of its own, greys that can be read on light and dark: a template, so that
    another one replaces all of it.
    """
    axis = {"gridcolor": LINES, "zeroline": False, "linecolor": INK, "ticks": "outside"}
    clear = "rgba(0,0,0,0)"
    layout = {
        "width": SIZE[0],
        "height": SIZE[1],
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": {"color": INK, "size": 13},
        "title": {"font": {"size": 15}, "x": 0.01, "xref": "paper"},
        "margin": {"l": 70, "r": 20, "t": 50, "b": 60},
        "legend": {"bgcolor": clear, "y": 1, "yanchor": "top"},
        "hoverlabel": {"align": "left"},
        "xaxis": axis,
        "yaxis": axis,
    }
    return {"layout": layout}


def _hover(member: Any, row: pd.Series, told: Sequence[str]) -> str:
    lines = [f"<b>{_safe(row.get('name', ''))}</b> (member {member})"]
    lines += [f"{name}: {_told(row[name])}" for name in told if _told(row[name])]
    return "<br>".join(lines)


def _told(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.4g}"
    return "" if value is None else _safe(str(value))


def _safe(text: str) -> str:
    """plotly reads a few tags in labels; names are shown as they are."""
    return html.escape(text, quote=False)
