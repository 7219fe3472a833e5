"""The figures of the study of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ensemble_sae.analysis.position_curves import PositionAxes, PositionCurves, Traced, parts
from ensemble_sae.analysis.positions import PositionScores
from ensemble_sae.pages import figures
from ensemble_sae.run import Sae

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

FIRST = 7  # curves in a panel: as many as there are colours
_LOWEST = 1e-3  # scores below are drawn at it


def scores(of: Mapping[str, PositionScores]) -> Figure:
    """Position score against token score, a panel for each member."""
    columns = min(2, len(of))
    rows = -(-len(of) // columns)
    with figures.figure(rows, columns, (4.4, 4)) as (made, axes):
        for place in list(axes.flat)[len(of) :]:
            place.set_visible(False)
        for place, (name, own) in zip(axes.flat, of.items(), strict=False):
            _scatter(place, name, own)
        return made


def _scatter(place: Axes, name: str, own: PositionScores) -> None:
    alive = (own.position > 0) & (own.token > 0)
    token, position = (score.clamp(min=_LOWEST).numpy() for score in (own.token, own.position))
    chosen = (own.positional & alive).numpy()
    rest = (alive & ~own.positional).numpy()
    place.scatter(token[rest], position[rest], s=7, color=figures.COLOURS[0], alpha=0.4, lw=0)
    place.scatter(token[chosen], position[chosen], s=36, color=figures.COLOURS[1], marker="x")
    ends = [min(token[alive].min(), position[alive].min()), max(token.max(), position.max())]
    place.plot(ends, ends, "--", color=figures.GREY, lw=1)
    for axis in "xy":
        figures.logarithmic(place, axis)
    place.set_title(f"{name}: {int(chosen.sum())} of {len(chosen):,}", fontsize=10)
    place.set_xlabel("token score")
    place.set_ylabel("position score")


def curves_of(own: PositionScores) -> Figure:
    """m(p) of the highest-scoring positional features, in the order of their peaks."""
    chosen = own.by_peak
    strongest = own.position[chosen].argsort(descending=True, stable=True)[:FIRST]
    first, stop = own.span
    with figures.figure(1, 1, (8, 4)) as (made, axes):
        place = axes[0, 0]
        for colour, index in zip(figures.COLOURS, strongest.sort().values.tolist(), strict=False):
            feature = int(chosen[index])
            values = own.by_position[feature, first:].numpy()
            name = f"{feature}, peak at {int(own.peak[feature])}"
            place.plot(np.arange(first, first + len(values)), values, color=colour, label=name)
        _end(place, stop)
        place.set_title("Positional features")
        place.set_xlabel("position in the context")
        place.set_ylabel("mean activation over tokens")
        place.legend(title="feature", loc="center left", bbox_to_anchor=(1, 0.5))
        return made


def heat_map(every: Sequence[PositionScores]) -> Figure:
    """m(p) of the positional features of several members, sorted by their peaks."""
    first, stop = every[0].span
    lines = torch.cat([own.by_position[own.by_peak, first:] for own in every])
    peaks = torch.cat([own.peak[own.by_peak] for own in every])
    tops = torch.cat([own.position[own.by_peak] for own in every])
    lines = (lines / tops[:, None])[peaks.argsort(stable=True)]
    with figures.figure(1, 1, (8, 4.8)) as (made, axes):
        place = axes[0, 0]
        colours = _with_more()
        edges = (first - 0.5, first + lines.shape[1] - 0.5, len(lines) - 0.5, -0.5)
        image = place.imshow(
            lines.numpy(), aspect="auto", cmap=colours, vmin=0, vmax=1.001, extent=edges
        )
        _end(place, stop, "white")
        place.grid(visible=False)
        place.set_title("Positional features, sorted by the position of their peak")
        place.set_xlabel("position in the context")
        place.set_ylabel("feature")
        bar = made.colorbar(image, ax=place, shrink=0.9, extend="max")
        bar.set_label("mean activation, share of the peak")
        return made


def _with_more() -> Colormap:
    """Viridis, and another colour above its end."""
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(over=figures.COLOURS[1], bad="lightgrey")


def pca(axes_of: PositionAxes, told: Traced, own: PositionScores, sae: Sae) -> Figure:
    """The position embeddings, and the positional atoms, on the embeddings' first three axes."""
    start, stop = told.span
    true = axes_of.place(told.positions.detach().cpu()).numpy()
    middle = told.told[slice(*told.span)].mean(0)
    line = axes_of.directions((told.told - middle).cpu()).numpy()
    code = torch.zeros(len(own.by_peak), len(own.position))
    code[torch.arange(len(code)), own.by_peak] = own.position[own.by_peak]
    atoms = axes_of.directions(parts(sae, code)).numpy()
    peaks = own.peak[own.by_peak].numpy()
    pairs = [(0, 1), (0, 2)] if true.shape[1] > 2 else [(0, 1)]
    with figures.figure(1, len(pairs), (5.4, 4.6)) as (made, axes):
        for place, (x, y) in zip(axes.flat, pairs, strict=True):
            place.scatter(true[stop:, x], true[stop:, y], s=8, color="#bbbbbb", lw=0)
            look = {"cmap": "viridis", "vmin": start, "vmax": stop - 1}
            inside = slice(start, stop)
            dots = place.scatter(
                true[inside, x], true[inside, y], s=16, c=range(start, stop), lw=0, **look
            )
            place.plot(line[inside, x], line[inside, y], color=figures.COLOURS[1], lw=1.2)
            place.plot(line[stop:, x], line[stop:, y], "--", color=figures.COLOURS[1], lw=0.9)
            place.scatter(atoms[:, x], atoms[:, y], s=70, c=peaks, marker="X", ec="black", **look)
            for axis, name in ((x, "x"), (y, "y")):
                text = f"component {axis + 1} ({100 * float(axes_of.share[axis]):.0f}%)"
                getattr(place, f"set_{name}label")(text)
        made.colorbar(dots, ax=axes, shrink=0.9).set_label("position, or that of the peak")
        return made


def along(of: Mapping[str, PositionCurves], context: int) -> Figure:
    """FVU, L0 and active positional features against position, a curve for each member."""
    panels = (
        ("Reconstruction error", "FVU", True),
        ("Active features", "L0, features per row", True),
        ("Active positional features", "features per row", False),
    )
    with figures.figure(1, len(panels), (4.6, 4)) as (made, axes):
        for number, (place, (title, y, log)) in enumerate(zip(axes.flat, panels, strict=True)):
            for index, (name, own) in enumerate(of.items()):
                values = (own.fvu, own.l0, own.active.sum(0))[number].numpy()
                colour = figures.COLOURS[index % len(figures.COLOURS)]
                place.plot(np.arange(len(values)), values, color=colour, lw=1.2, label=name)
            if log:
                figures.logarithmic(place, "y")
            _end(place, context)
            place.set_title(title)
            place.set_xlabel("position in the context")
            place.set_ylabel(y)
        axes[0, -1].legend(title="member", loc="center left", bbox_to_anchor=(1, 0.5))
        return made


def _end(place: Axes, context: int, colour: str = figures.GREY) -> None:
    """A line between the last position that was trained on and the next."""
    place.axvline(context - 0.5, ls=":", lw=1.2, color=colour)
