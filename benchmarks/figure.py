"""The figure: speed by the density of the codes, and by the number of members."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator, StrMethodFormatter

Cell = dict[str, Any]
MEDIAN = 1

# Okabe and Ito's colours: told apart by all kinds of colour vision, and by marker
KERNELS = {"sparse": ("#0072B2", "o"), "dense": ("#D55E00", "s")}
SHAPES = [("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P")]
GREY = "#555555"
RANKED = {"topk": "*", "batchtopk": "X"}
BOUND = 5  # products of a dense step, of which the sparse one does one
BELOW = 0.05  # active: sparse codes


def draw(report: dict[str, Any], path: Path) -> None:
    """Write `path` as PNG and SVG."""
    cells = next(iter(report["steps"].values()))
    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "throughput", "axes.axisbelow": True}):
        figure = Figure(figsize=(14, 5), layout="constrained", facecolor="white")
        limit, loop, members = figure.subplots(1, 3)
        widest = _most_densities(cells)
        _by_density(limit, widest, lambda cell: cell["of_limit"], bound=True)
        limit.set_title("Speed against the dense limit")
        limit.set_ylabel("five bare products' time / step's time")
        _by_density(loop, widest, lambda cell: cell["over"]["loop"])
        loop.set_title("Speed-up over the loop")
        loop.set_ylabel("loop's time / step's time")
        top = max(axes.get_ylim()[1] for axes in (limit, loop))
        for axes in (limit, loop):
            axes.set_ylim(0, top)
        _by_members(members, cells)
        about = f"{report['about']['hardware']}, float32, whole steps with Adam"
        figure.supxlabel(f"Left and middle: {_title(widest[0])}.   {about}", fontsize=10)
        figure.savefig(path.with_suffix(".png"), dpi=160)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _most_densities(cells: list[Cell]) -> list[Cell]:
    """The cells of the shape and number of members with the most densities; wide rows first."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["shape"], cell["members"]), []).append(cell)
    return max(groups.values(), key=lambda own: (len(own), own[0]["d"], own[0]["members"]))


def _title(cell: Cell) -> str:
    return f"{cell['members']} members of {_sizes(cell)}"


def _sizes(cell: Cell) -> str:
    dicts = cell["dicts"]
    n = str(dicts[0]) if len(dicts) == 1 else f"{min(dicts)}..{max(dicts)}"
    return f"d {cell['d']}, n {n}, B {cell['batch']}"


def _by_density(
    axes: Axes, cells: list[Cell], ratios: Callable[[Cell], dict[str, Any]], bound: bool = False
) -> None:
    """A curve for each kernel, a mark for each signature that ranks, a line at 1."""
    cells = sorted(cells, key=lambda cell: cell["active"])
    for kernel, (colour, marker) in KERNELS.items():
        measured = [cell for cell in cells if kernel in ratios(cell)]
        curve = [cell for cell in measured if cell["signature"] not in RANKED]
        axes.errorbar(
            [cell["active"] for cell in curve],
            *_with_bars([ratios(cell)[kernel] for cell in curve]),
            color=colour,
            marker=marker,
            capsize=2,
            label=f"{kernel} kernel",
        )
        for cell in (cell for cell in measured if cell["signature"] in RANKED):
            marker, speed = RANKED[cell["signature"]], ratios(cell)[kernel][MEDIAN]
            axes.plot(cell["active"], speed, marker, color=colour, mec="white", ms=11, zorder=3)
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":")
    if bound:
        axes.axhline(BOUND, color=GREY, linewidth=1, linestyle="--")
        axes.annotate("bound: one product of five is left", (1, BOUND), (-4, -4), **_ABOVE)
        axes.annotate("the dense limit", (1, 1), (-4, 12), **_ABOVE)
    handles = list(axes.get_legend_handles_labels()[0])
    there = {cell["signature"] for cell in cells}
    for name, marker in RANKED.items():
        if name in there:
            style: dict[str, Any] = {"color": GREY, "markeredgecolor": "white", "markersize": 11}
            handles.append(Line2D([], [], marker=marker, linestyle="", label=name, **style))
    _finish(axes, handles, "upper right" if not bound else "center right")
    axes.set_xscale("log")
    ticks = [cell["active"] for cell in cells if cell["signature"] not in RANKED]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.2g}%"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("features active in a row")


_ABOVE: dict[str, Any] = {
    "xycoords": ("axes fraction", "data"),
    "textcoords": "offset points",
    "ha": "right",
    "va": "top",
    "fontsize": 9,
    "color": GREY,
}


def _by_members(axes: Axes, cells: list[Cell]) -> None:
    """`auto` over the loop: a colour for each shape, filled where codes are sparse."""
    shapes: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell["signature"] not in RANKED:
            shapes.setdefault(_sizes(cell), []).append(cell)
    handles = []
    for (name, own), (colour, marker) in zip(shapes.items(), SHAPES, strict=False):
        for density in _two_densities(own):
            line = [cell for cell in own if cell["density"] == density]
            sparse = density is not None
            axes.errorbar(
                [cell["members"] for cell in line],
                *_with_bars([cell["over"]["loop"]["auto"] for cell in line]),
                color=colour,
                marker=marker,
                linestyle="-" if sparse else "--",
                markerfacecolor=colour if sparse else "white",
                capsize=2,
            )
        handles.append(Line2D([], [], color=colour, marker=marker, label=name))
    for words, style in (("2% active", "-"), ("as initialised, 50%", "--")):
        handles.append(Line2D([], [], color=GREY, linestyle=style, label=words))
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":")
    axes.set_title("Speed-up over the loop, by members")
    axes.set_ylabel("loop's time / step's time, auto")
    axes.set_ylim(bottom=0)
    axes.set_ylim(top=1.45 * axes.get_ylim()[1])  # room for what stands for what
    _finish(axes, handles, "upper left")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel("members trained at once")


def _two_densities(cells: list[Cell]) -> list[float | None]:
    """That of sparse codes which most cells of a shape have, and None, if they are there."""
    found = {cell["density"] for cell in cells}
    sparse = sorted(x for x in found if x is not None and x <= BELOW)
    return [*sparse[-1:], *([None] if None in found else [])]


def _with_bars(quartiles: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far the quartiles lie below and above them."""
    medians = [median for _, median, _ in quartiles]
    below = [median - first for first, median, _ in quartiles]
    above = [third - median for _, median, third in quartiles]
    return medians, [below, above]


def _finish(axes: Axes, handles: list[Any], place: str) -> None:
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=handles, frameon=False, fontsize=9, loc=place)
