"""What `scaling.py` found: a page with a table, and a figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, StrMethodFormatter

MIB = 2**20
NEAR = 0.2  # how far off a prediction may be
COLOURS = {"dense": "#0072B2", "sparse": "#D55E00"}  # Okabe and Ito's
ONE, MORE = ("o", "-"), ("s", "--")  # marker and line, by the number of workers
COLUMNS = [
    "shape", "kernel", "workers", "members",
    "ms", "predicted", "ratio (quartiles)", "MiB", "predicted", "ratio",
]  # fmt: skip
HOW_TO_READ = """\
* **ms**: one step of all members; with several workers, of the slowest. **MiB**: the peak of a
  worker that makes its members, steps them and writes them once, above that of the same process
  after a tiny step ({base:,.0f} MiB here); with several workers, of the largest.
* **predicted**: by `ensemble_sae/dispatch/cost.py` and `memory.py`, from shapes, density and four
  speeds of the device (products {product:,.0f} GFLOP/s, passes in the cache {cached:,.0f} GB/s and
  in memory {memory:,.0f} GB/s, a tiny step {step:.2f} ms; medians here). The speeds are measured in
  the same process between the timed steps, the best of some tries as the steps' times are; the
  **ratio**, predicted / measured, is the median over such rounds.
* `untied` members with 2% of their features active in a row, float32, Adam. Workers are processes
  with the allocator settings of a sweep's; they share out the members and step at the same time.
* Within 20%: {times} of {cells} times, {memories} of {cells} peaks."""


def page(report: dict[str, Any]) -> str:
    """The page, in Markdown."""
    cells, about = report["cells"], report["about"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    speeds = [median(column) for column in zip(*_speeds(cells), strict=True)]
    words = HOW_TO_READ.format(
        base=max(cell["base_bytes"] for cell in cells) / MIB,
        product=speeds[0] / 1e9,
        cached=speeds[1] / 1e9,
        memory=speeds[2] / 1e9,
        step=speeds[3] * 1e3,
        cells=len(cells),
        times=sum(abs(cell["time_ratio"][1] - 1) <= NEAR for cell in cells),
        memories=sum(abs(cell["memory_ratio"] - 1) <= NEAR for cell in cells),
    )
    rules = ["---", "---", *["--:"] * (len(COLUMNS) - 2)]
    table = [f"| {' | '.join(row)} |" for row in [COLUMNS, rules, *map(_row, cells)]]
    head = [
        "# Scaling: members and workers, against the cost model",
        "",
        f"{about['hardware']}; {about['system']}, Python {about['python']}, {packages}.",
        f"{about['date']}, `{about['command']}`",
        "",
        "![Time and memory by the number of members](scaling.png)",
        "",
    ]
    return "\n".join([*head, *table, "", words, ""])


def _speeds(cells: list[dict[str, Any]]) -> Iterator[list[float]]:
    return (cell["speeds"] for cell in cells if cell["workers"] == 1)


def _row(cell: dict[str, Any]) -> list[str]:
    first, middle, third = cell["time_ratio"]
    workers, threads = cell["workers"], cell["threads"]
    return [
        _shape(cell),
        cell["kernel"],
        f"{workers} with {threads} thread{'s' if threads > 1 else ''}",
        str(cell["members"]),
        _digits(cell["seconds"] * 1e3),
        _digits(cell["predicted_seconds"] * 1e3),
        f"{middle:.2f} ({first:.2f}..{third:.2f})",
        _digits(cell["bytes"] / MIB),
        _digits(cell["predicted_bytes"] / MIB),
        f"{cell['memory_ratio']:.2f}",
    ]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _shape(cell: dict[str, Any]) -> str:
    return f"d {cell['d']}, n {cell['n_dict']}, B {cell['rows']}"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write `path` as PNG and SVG: measured points, predicted lines."""
    cells = report["cells"]
    shapes = list(dict.fromkeys(map(_shape, cells)))
    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "scaling", "axes.axisbelow": True}):
        figure = Figure(figsize=(5.2 * len(shapes), 8), layout="constrained", facecolor="white")
        panels = figure.subplots(2, len(shapes), squeeze=False, sharex="col", sharey="row")
        for column, shape in enumerate(shapes):
            own = [cell for cell in cells if _shape(cell) == shape]
            _panel(panels[0][column], own, "seconds", 1e3)
            _panel(panels[1][column], own, "bytes", 1 / MIB)
            panels[0][column].set_title(shape)
            panels[1][column].set_xlabel("members")
        panels[0][0].set_ylabel("a step [ms]")
        panels[1][0].set_ylabel("largest worker's memory\nabove a process at rest [MiB]")
        title = f"points: measured; lines: predicted\n{report['about']['hardware']}, float32"
        figure.legend(
            handles=_legend(cells), loc="outside lower center", ncols=4, title=title, frameon=False
        )
        figure.savefig(path.with_suffix(".png"), dpi=160)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _panel(axes: Axes, cells: list[dict[str, Any]], name: str, unit: float) -> None:
    for (kernel, workers), own in _lines(cells).items():
        marker, line = ONE if workers == 1 else MORE
        members = [cell["members"] for cell in own]
        colour, face = COLOURS[kernel], COLOURS[kernel] if workers == 1 else "white"
        axes.plot(members, [cell[f"predicted_{name}"] * unit for cell in own], line, color=colour)
        measured = [cell[name] * unit for cell in own]
        axes.plot(members, measured, marker, color=colour, markerfacecolor=face, markersize=7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({cell["members"] for cell in cells}))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(cells: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in cells:
        found.setdefault((cell["kernel"], cell["workers"]), []).append(cell)
    return found


def _legend(cells: list[dict[str, Any]]) -> list[Line2D]:
    handles = []
    for kernel, workers in _lines(cells):
        (marker, line), colour = (ONE if workers == 1 else MORE), COLOURS[kernel]
        words = f"{kernel}, {workers} worker{'s' if workers > 1 else ''}"
        face = colour if workers == 1 else "white"
        handles.append(
            Line2D([], [], color=colour, marker=marker, ls=line, markerfacecolor=face, label=words)
        )
    return list({handle.get_label(): handle for handle in handles}.values())
