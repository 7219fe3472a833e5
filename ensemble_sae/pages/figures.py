"""Figures in one style: heat maps over two axes of a grid, curves, scatters.

matplotlib is an extra: `pip install 'ensemble-sae[study]'`. Figures are made without a screen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_sae.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which all kinds of colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = "osD^vPX"
LINES = ("-", "--")  # when the colours are used up
GREY = "#555555"
DPI = 160
MANY_DECADES = 2000  # from the largest to the smallest number of an axis
_STYLE = {
    "font.size": 10,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "ensemble-sae",
}


@contextmanager
def figure(rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, Any]]:
    """A figure of `rows` x `columns` panels, of `size` inches each, and its axes `[rows, columns]`.

    Raises:
        UserError: matplotlib is not installed.
    """
    mpl = matplotlib()
    with mpl.rc_context(_STYLE):
        from matplotlib.figure import Figure

        whole = (size[0] * columns, size[1] * rows)
        made = Figure(figsize=whole, layout="constrained", facecolor="white")
        yield made, made.subplots(rows, columns, squeeze=False)


def matplotlib() -> Any:
    """The module, or an error that says how to get it."""
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "Figures need matplotlib, which is not installed.",
            next_step="pip install 'ensemble-sae[study]'",
        ) from None
    return matplotlib


def heat_map(
    axes: Axes,
    grid: pd.DataFrame,
    title: str,
    *,
    form: str = "{:.2f}",
    span: tuple[float, float] | None = None,
    best: Callable[[Any], Any] | None = None,
) -> None:
    """A cell for each value of `grid`: its index goes up, its columns go right, both as they are.

    Args:
        form: how numbers are written into their cells.
        span: values of the two ends of the colours; of the data by default.
        best: `np.nanargmax` or `np.nanargmin`: what is framed in each column.
    """
    values = grid.to_numpy(float)
    low, high = span or (np.nanmin(values), np.nanmax(values))
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value < low + 0.6 * (high - low)
            colour = "white" if dark else "black"
            text = form.format(value)
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    for column in range(values.shape[1]) if best else ():
        if best and np.isfinite(values[:, column]).any():
            place = (column - 0.5, best(values[:, column]) - 0.5)
            _frame(axes, place)
    axes.set_xticks(range(grid.shape[1]), [f"{x:g}" for x in grid.columns])
    axes.set_yticks(range(grid.shape[0]), [f"{y:.2g}" for y in grid.index])
    axes.grid(visible=False)
    axes.set_title(title)
    axes.figure.colorbar(image, ax=axes, shrink=0.9)


def _frame(axes: Axes, place: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="#D55E00", linewidth=2))


def logarithmic(axes: Axes, name: str) -> None:
    """Ticks at 1, 2, 5 of a decade or, where there are many decades, at 1 alone; plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axes, f"set_{name}scale")("log")
    axis = getattr(axes, f"{name}axis")
    low, high = axis.get_view_interval()
    few = high / low < MANY_DECADES
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def curves(
    axes: Axes,
    series: Sequence[tuple[str, Any, Any]],
    *,
    title: str,
    x: str,
    y: str,
    log: str = "",
    legend: str | None = None,
) -> None:
    """A curve with markers for each (name, x, y).

    Args:
        x, y: what the axes show, with units.
        log: which of the axes are logarithmic: "", "x", "y" or "xy".
        legend: its title; no legend without one.
    """
    for number, (name, xs, ys) in enumerate(series):
        again, which = divmod(number, len(COLOURS))
        look: Any = {"color": COLOURS[which], "marker": MARKERS[which]}
        axes.plot(xs, ys, ms=4, lw=1.4, ls=LINES[again % 2], label=name, **look)
    for name in log:
        logarithmic(axes, name)
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend is not None:
        axes.legend(title=legend)
