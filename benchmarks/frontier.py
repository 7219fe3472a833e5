"""The frontier of a finished run, and whether its families are monotone in l1.

    python benchmarks/frontier.py runs/default

In each family (signature, ratio, bias decay) L0 must fall and FVU must rise with l1.
`benchmarks/readme.py` puts the table into the README, and draws the picture beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import ensemble_sae
from ensemble_sae.pages import figures
from ensemble_sae.pages.pareto import TITLES, UPWARDS, frontier, shades

SIZE = (8.3, 4.7)  # inches: at 100 dots each the width of a README
SHOWN_DPI = 200


def families(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(name, members in order of l1) for every signature, ratio and bias decay."""
    by = ["signature", "dict_ratio", "bias_decay"]
    found = []
    for (signature, ratio, decay), members in table.groupby(by):
        found.append((f"{signature} r={ratio:g} bd={decay:g}", members.sort_values("l1")))
    return found


def problems(table: pd.DataFrame) -> list[str]:
    """Families whose L0 does not fall or FVU does not rise with l1, or that are degenerate."""
    said = []
    for name, members in families(table):
        l0, fvu, n = members["l0"], members["fvu"], members["n_dict"].iloc[0]
        if not l0.is_monotonic_decreasing:
            said.append(f"{name}: L0 rises somewhere: {[round(v, 2) for v in l0]}")
        if not fvu.is_monotonic_increasing:
            said.append(f"{name}: FVU falls somewhere: {[round(v, 4) for v in fvu]}")
        if (l0 < 0.5).all() or (l0 > 0.95 * n).all():
            said.append(f"{name}: degenerate: L0 {l0.min():.1f}..{l0.max():.1f} of {n}")
    return said


def markdown(run: ensemble_sae.run.Run, rows: int = 6) -> str:
    """The frontier as a Markdown table, thinned out evenly to `rows` members."""
    best = run.members[run.members["pareto"]].sort_values("l0")
    step = max(1, len(best) // rows)
    lines = ["| member | L0 | FVU | dead |", "|---|---|---|---|"]
    lines += [
        f"| `{m['name']}` | {m.l0:.1f} | {m.fvu:.3f} | {100 * m.dead:.1f}% |"
        for _, m in best.iloc[::step].iterrows()
    ]
    seconds, shown = run.status["seconds"], len(best.iloc[::step])
    lines += [
        "",
        f"{shown} of the {len(best)} Pareto-best of {len(run.members)} members, on held-out rows; "
        f"harvest, training and evaluation took {seconds / 60:.1f} minutes "
        "(installing, looking at features and writing the report not counted) on "
        f"{run.status['hardware']}. Made by `make sweep`.",
    ]
    return "\n".join(lines) + "\n"


def picture(table: pd.DataFrame, y: str = "fvu") -> Figure:
    """All members: colour by ratio, marker by signature, the frontier as a line.

    Args:
        y: what stands against L0: "fvu", or "ce_recovered" in a table that has it.
    """
    with figures.figure(1, 1, SIZE) as (made, axes):
        place = axes[0, 0]
        best = frontier(table, "l0", y)
        place.plot(best["l0"], best[y], color=figures.GREY, lw=1.2, zorder=1)
        ratios = sorted(table["dict_ratio"].unique())
        colours = dict(zip(ratios, shades(ratios), strict=True))
        markers = dict(zip(table["signature"].unique(), figures.MARKERS, strict=False))
        for (signature, ratio), own in table.groupby(["signature", "dict_ratio"]):
            look = {"color": colours[ratio], "marker": markers[signature]}
            place.scatter(own["l0"], own[y], s=34, lw=0.6, ec="white", zorder=2, **look)
        figures.logarithmic(place, "x")
        if y not in UPWARDS:
            place.set_ylim(bottom=0)
        place.set_xlabel(TITLES["l0"], fontsize=11)
        place.set_ylabel(TITLES[y], fontsize=11)
        count = int(table[y].notna().sum())
        place.set_title(
            f"{count} members trained in one pass, on held-out rows", loc="left", fontsize=12
        )
        _legends(place, colours, markers, "lower" if y in UPWARDS else "upper")
        return made


def _legends(axes: Axes, colours: dict[float, str], markers: dict[str, str], height: str) -> None:
    point = {"linestyle": "", "markersize": 7, "markeredgecolor": "white"}
    kinds = [
        Line2D([], [], color=figures.GREY, marker=marker, label=name, **point)
        for name, marker in markers.items()
    ]
    kinds.append(Line2D([], [], color=figures.GREY, lw=1.2, label="frontier"))
    sizes = [
        Line2D([], [], color=colour, marker="o", label=f"{ratio:g}", **point)
        for ratio, colour in colours.items()
    ]
    shared = {"loc": f"{height} right", "alignment": "left", "fontsize": 10, "title_fontsize": 10}
    axes.add_artist(axes.legend(handles=kinds, title="signature", **shared))
    axes.legend(
        handles=sizes,
        title="features / width of a row",
        ncols=len(sizes),
        columnspacing=1,
        bbox_to_anchor=(0.82, 1 if height == "upper" else 0),
        handletextpad=0.1,
        **shared,
    )


def draw(run: ensemble_sae.run.Run, path: Path) -> None:
    """Write the picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(run.members).savefig(path, dpi=SHOWN_DPI, metadata={"Software": None})


def main() -> int:
    """Print the frontier; 1 if a family is not monotone or degenerate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    run = ensemble_sae.load(options.run)
    print(markdown(run))
    found = problems(run.members)
    for line in found:
        print(line)
    count = len(families(run.members))
    print(
        f"{count - len({p.split(':')[0] for p in found})} of {count} families are monotone in l1."
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
