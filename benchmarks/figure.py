"""The figure: speed-up over the loop, and share of the limit, by the number of members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

# Okabe and Ito's colours: told apart by all kinds of colour vision, and by marker
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")]
LINES = {"kept": "-", "returned": "--"}


def draw(report: dict[str, Any], path: Path) -> None:
    """Write `path` as PNG and SVG."""
    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "throughput", "axes.axisbelow": True}):
        figure = Figure(figsize=(10.5, 4.8), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        shapes = _speedups(left, report["steps"])
        _shares(right, next(iter(report["steps"].values())))
        title = f"{report['about']['hardware']}, float32"
        figure.legend(
            shapes.values(), shapes, loc="outside lower center", ncols=4, title=title, frameon=False
        )
        figure.savefig(path.with_suffix(".png"), dpi=160)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _speedups(axes: Axes, steps: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The left half; returns what stands for each shape."""
    shapes: dict[str, Any] = {}
    for setting, cells in steps.items():
        for (shape, own), (colour, marker) in zip(_by_shape(cells).items(), STYLES, strict=False):
            drawn = axes.errorbar(
                [cell["members"] for cell in own],
                *_with_bars([cell["speedup_over"]["loop"] for cell in own]),
                color=colour,
                marker=marker,
                linestyle=LINES[setting],
                markerfacecolor=colour if setting == "kept" else "white",
                capsize=2,
            )
            shapes.setdefault(shape, drawn)
    for setting in steps:
        words = {"kept": "freed memory kept", "returned": "returned to the system"}[setting]
        axes.plot([], [], color="#555555", linestyle=LINES[setting], label=words)
    axes.axhline(1, color="#555555", linewidth=1, linestyle=":")
    axes.set_title("Speed-up over a loop of single models")
    axes.set_ylabel("loop's time / ensemble's time")
    axes.set_ylim(bottom=0)
    _finish(axes)
    return shapes


def _shares(axes: Axes, cells: list[dict[str, Any]]) -> None:
    """The right half."""
    for own, (colour, marker) in zip(_by_shape(cells).values(), STYLES, strict=False):
        members = [cell["members"] for cell in own]
        for name, filled in (("ensemble", True), ("loop", False)):
            axes.errorbar(
                members,
                *_with_bars([cell["of_limit"][name] for cell in own]),
                color=colour,
                marker=marker,
                linestyle="-" if filled else ":",
                markerfacecolor=colour if filled else "white",
                capsize=2,
            )
    for words, style in (("ensemble", "-"), ("loop", ":")):
        axes.plot([], [], color="#555555", linestyle=style, label=words)
    axes.set_title("Share of the five bare matrix products' speed")
    axes.set_ylabel("products' time / step's time")
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _finish(axes)


def _by_shape(cells: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        sizes = cell["dicts"]
        n = str(sizes[0]) if len(sizes) == 1 else f"{min(sizes)}..{max(sizes)}"
        found.setdefault(f"d {cell['d']}, n {n}, B {cell['batch']}", []).append(cell)
    return found


def _with_bars(quartiles: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far the quartiles lie below and above them."""
    medians = [median for _, median, _ in quartiles]
    below = [median - first for first, median, _ in quartiles]
    above = [third - median for _, median, third in quartiles]
    return medians, [below, above]


def _finish(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel("members trained at once")
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
