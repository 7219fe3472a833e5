"""The comparison as a table, a page, numbers and a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from show import Table

ALLOCATORS = {"own": "as it comes", "ours": "our allocator settings"}
COLOURS = {"own": "#0072B2", "ours": "#D55E00"}  # Okabe and Ito's

HOW_TO_READ = """\
* Every contestant is a process of its own, and one works at a time: they take turns of
  {steps} steps, the first turn does not count, and the order moves on by one place from round to
  round. **ms** is one step of all members, median over {rounds} rounds. **ratio** is peer's time /
  ours, the median of the ratios within rounds; beside it their quartiles.
* All get the same {batches} batches of normally distributed float32 rows, {threads} threads, and
  the same build of PyTorch.
* **allocator**: a step that allocates its arrays anew gains from an allocator that keeps freed
  memory. Our training workers are started with such settings, so ours always has them; the peers
  are measured as they come, and with the same settings.
* **ours**: `FunctionalEnsemble.step` as a sweep uses it. Its members have {actives}
  of their features active, and learning rate 0, so that this share stays what it is; Adam's
  arithmetic is done all the same. The peers train, at their default learning rates; their relu
  steps are dense, whatever the share.
* **dictionary_learning**: `trainSAE` with a list of `StandardTrainer`s. **SAELens**:
  `MultiSAETrainer.fit` with standard SAEs. **sparsify**: `Trainer.fit` with a TopK SAE for each
  seed, without Triton, which needs a GPU; by its default optimiser (sign descent,
  schedule-free) and by Adam, which ours uses. Each is the library's own loop with logging,
  evaluation and saving off; what a step includes is said at the top of the scripts in
  `benchmarks/peers`."""


def table(report: dict[str, Any]) -> Table:
    """A row for each peer, allocator, and ensemble of ours that it is held against."""
    columns = ["peer", "version", "allocator", "ours", "peer ms", "ours ms", "ratio", "quartiles"]
    found = Table("One step of all members", columns, words=4)
    for row in report["ratios"]:
        first, median, third = row["ratio"]
        found.rows.append(
            [row["peer"], row["version"], ALLOCATORS[row["allocator"]], row["ours"]]
            + [f"{row[key]:,.1f}" for key in ("peer_ms", "ours_ms")]
            + [f"{median:.2f}x", f"{first:.2f} to {third:.2f}"]
        )
    return found


def page(report: dict[str, Any]) -> str:
    """The Markdown page."""
    about, sizes = report["about"], report["sizes"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    actives = ", ".join(f"{share:.2%} ({name})" for name, share in report["active"].items())
    how = HOW_TO_READ.format(actives=actives, threads=about["threads"], **report["pace"])
    lines = [
        "# Peers",
        "",
        f"* Hardware: {about['hardware']}, {about['threads']} threads; {about['system']}",
        f"* Versions: Python {about['python']}, {packages}",
        f"* Date: {about['date']}",
        f"* Command: `{about['command']}`",
        f"* Sizes: {_sizes(sizes)}, {sizes['members']} members, k = {sizes['k']} for TopK",
        *(f"* Note: {note}" for note in report["notes"]),
        "",
        "![Time of a peer's step over ours](peers.png)",
        "",
        table(report).markdown(),
        "",
        "## How to read it",
        "",
        how,
        "",
        "The seconds of every turn are in `peers.json`.",
    ]
    return "\n".join(lines) + "\n"


def _sizes(sizes: dict[str, int]) -> str:
    return f"d {sizes['d']}, n {sizes['n_dict']}, B {sizes['batch']}"


def write(report: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the table and write the page, the numbers and the figure into a folder."""
    console.print(table(report).rich())
    for note in report["notes"]:
        console.print(f"Note: {note}", highlight=False, markup=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.md").write_text(page(report), encoding="utf-8")
    (folder / "peers.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    written = ".md, .json"
    if not report["ratios"]:
        console.print("No figure: no peer could be measured.")
    elif _drawn(report, folder / "peers", console):
        written += ", .png, .svg"
    console.print(f"Written: {folder}/peers{written}")


def _drawn(report: dict[str, Any], path: Path, console: Console) -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        console.print("No figure: it needs matplotlib (pip install 'ensemble-sae[bench]').")
        return False
    draw(report, path)
    return True


def draw(report: dict[str, Any], path: Path) -> None:
    """Write `path` as PNG and SVG: a group of bars for each peer and ensemble of ours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((row["peer"], row["ours"]) for row in report["ratios"]))
    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "peers", "axes.axisbelow": True}):
        size = (9, 1.8 + 0.75 * len(groups))
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = figure.subplots()
        for up, allocator in ((-0.19, "own"), (0.19, "ours")):
            rows = [row for row in report["ratios"] if row["allocator"] == allocator]
            places = [groups.index((row["peer"], row["ours"])) + up for row in rows]
            _bars(axes, places, [row["ratio"] for row in rows], allocator)
        axes.set_yticks(range(len(groups)), [f"{peer}\nover {ours}" for peer, ours in groups])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * max(row["ratio"][2] for row in report["ratios"]))
        axes.axvline(1, color="#555555", linewidth=1, linestyle=":")
        axes.set_xlabel("peer's time / ours, one step of all members")
        axes.set_title(f"{_sizes(report['sizes'])}, {report['sizes']['members']} members")
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        title = f"{report['about']['hardware']}, float32"
        figure.legend(loc="outside lower center", ncols=2, title=title, frameon=False)
        figure.savefig(path.with_suffix(".png"), dpi=160)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _bars(axes: Any, places: list[float], ratios: list[list[float]], allocator: str) -> None:
    """Medians as bars with their numbers, quartiles as whiskers."""
    medians = [median for _, median, _ in ratios]
    whiskers = [[m - first for first, m, _ in ratios], [third - m for _, m, third in ratios]]
    axes.barh(
        places,
        medians,
        0.36,
        color=COLOURS[allocator],
        label=f"peer with {ALLOCATORS[allocator]}" if allocator == "ours" else "peer as it comes",
        xerr=whiskers,
        error_kw={"capsize": 2, "ecolor": "#333333"},
    )
    for place, (_, median, third) in zip(places, ratios, strict=True):
        axes.annotate(
            f"{median:.1f}x", (third, place), (5, 0), textcoords="offset points", va="center"
        )
