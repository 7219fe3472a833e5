"""The report as tables on screen and in Markdown, as JSON, and as a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

SETTINGS = {
    "kept": "Steps; freed memory kept by the process (a training worker's allocator settings)",
    "returned": "Steps; freed memory returned to the system (the system's own settings)",
}
NAMES = {
    "ensemble": "ensemble",
    "generic": "generic",
    "loop": "loop",
    "compiled": "compiled",
}

HOW_TO_READ = """\
* **ensemble**: `FunctionalEnsemble.step` as a sweep uses it. **generic**: the same with
  `kernel="generic"`, the vmapped autograd path that any signature of your own gets.
* **loop**: single models one after the other: the same loss through autograd, then
  `torch.optim.Adam(fused=True)`. **compiled**: that loop with the loss through `torch.compile`.
  Both have the same first members and see the same batches; before anything is timed the losses
  in the second step are compared (largest relative difference here: {difference:.1e}).
* **ms**: one step of all members, median over turns. All contestants take turns in one process;
  the speed-ups and shares are medians of ratios within rounds.
* **of limit**: the time of the step's five matrix products alone, into arrays that are there
  already, as a share of the ensemble's whole step (Adam and metrics included).
* **of peak**: 10 B d n operations per member and step, as a share of what one large square product
  reaches in the same round (here about {peak:.0f} GFLOP/s).
* **SAE-rows/s**: batch rows times members, per second.
* A loop that allocates its arrays anew at every step gains a lot from an allocator that keeps
  freed memory. Training workers are given one, so both kinds of settings are shown, each the same
  for all contestants."""

LOADING = """\
*First*: until the first chunk is there. *Waiting*: the share of the time after that in which
training waited for a chunk; *gathering*: in which the rows of a batch were picked and converted.
The files are in the page cache, as they are after a harvest.

The quartiles of everything are in `throughput.json`. The script runs on CUDA too (`--device cuda`),
which has not been measured."""


@dataclass
class Table:
    """Rows of text under a heading; the first columns are words, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    words: int = 1

    def rich(self) -> RichTable:
        """For the screen."""
        table = RichTable(title=self.title, box=box.SIMPLE, title_justify="left")
        for place, column in enumerate(self.columns):
            justify = "left" if place < self.words else "right"
            table.add_column(column.replace(" ", "\n", 1), justify=justify, no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a page."""
        rules = ["---" if place < self.words else "--:" for place in range(len(self.columns))]
        lines = [self.columns, rules, *self.rows]
        return "\n".join([f"### {self.title}", "", *(f"| {' | '.join(x)} |" for x in lines)])


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """Everything that was measured."""
    for setting, cells in report["steps"].items():
        yield _steps(SETTINGS[setting], cells)
    yield _memory(report["memory"])
    yield _loading(report["loading"])


def _steps(title: str, cells: list[dict[str, Any]]) -> Table:
    trainers = [name for name in NAMES if any(name in cell["of_limit"] for cell in cells)]
    loops = [name for name in ("loop", "compiled") if name in trainers]
    table = Table(
        title,
        ["shape", "members", *(f"{NAMES[name]} ms" for name in trainers)]
        + [f"over {NAMES[name]}" for name in loops]
        + ["of limit", "of peak", "SAE-rows/s"],
    )
    for cell in cells:
        times = {name: c["median_ms"] for name, c in cell["contestants"].items()}
        rows = cell["batch"] * cell["members"] / (times["ensemble"] / 1000)
        over = {name: f"{ratio[1]:.2f}x" for name, ratio in cell["speedup_over"].items()}
        table.rows.append(
            [cell["shape"], str(cell["members"])]
            + [_ms(times[name]) if name in times else "" for name in trainers]
            + [over.get(name, "") for name in loops]
            + [f"{cell[share]['ensemble'][1]:.0%}" for share in ("of_limit", "of_peak")]
            + [f"{rows:,.0f}"]
        )
    return table


def _memory(found: list[dict[str, Any]]) -> Table:
    columns = ["shape", "members", "contestant", "weights MiB", "peak MiB"]
    table = Table("Peak memory while training, above that of a process at rest", columns, words=3)
    table.rows = [
        [
            row["shape"],
            str(row["members"]),
            NAMES[row["contestant"]],
            f"{row['weights_mib']:,.0f}",
            f"{row['above_start_mib']:,.0f}",
        ]
        for row in found
    ]
    return table


def _loading(found: list[dict[str, Any]]) -> Table:
    columns = ["shape", "members", "chunks", "chunk MiB", "first ms", "waiting", "gathering"]
    table = Table("Data loading while training", columns)
    table.rows = [
        [
            row["shape"],
            str(row["members"]),
            str(row["chunks"]),
            f"{row['chunk_mib']:.1f}",
            _ms(row["first_wait_s"] * 1000),
            f"{row['stall_share']:.2%}",
            f"{row['gather_share']:.2%}",
        ]
        for row in found
    ]
    return table


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def page(report: dict[str, Any]) -> str:
    """The Markdown page."""
    about = report["about"]
    cells = [cell for cells in report["steps"].values() for cell in cells]
    shapes = {c["shape"]: c for c in cells}.values()
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    peak = median(cell["peak_flop_per_s"][1] for cell in cells) / 1e9
    difference = max(cell["loss_difference"] for cell in cells)
    lines = [
        "# Throughput",
        "",
        f"* Hardware: {about['hardware']}, {about['threads']} threads; {about['system']}",
        f"* Versions: Python {about['python']}, {packages}",
        f"* Date: {about['date']}",
        f"* Command: `{about['command']}`",
        "",
        "![Speed-up over the loop, and share of the limit](throughput.png)",
        "",
        *(f"* Shape **{c['shape']}**: {_shape(c)}" for c in shapes),
        *(f"* Note: {note}" for note in report["notes"]),
        "",
        "## How to read it",
        "",
        HOW_TO_READ.format(difference=difference, peak=peak),
        *(f"\n{table.markdown()}" for table in tables(report)),
        "",
        LOADING,
    ]
    return "\n".join(lines) + "\n"


def _shape(cell: dict[str, Any]) -> str:
    sizes = cell["dicts"]
    dicts = str(sizes[0]) if len(sizes) == 1 else f"{', '.join(map(str, sizes))} in equal shares"
    return f"{cell['signature']}, d {cell['d']}, dictionary {dicts}, batch {cell['batch']}"


def write(report: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the tables and write the page, the numbers and the figure into a folder."""
    for table in tables(report):
        console.print(table.rich())
    for note in report["notes"]:
        console.print(f"Note: {note}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "throughput.md").write_text(page(report), encoding="utf-8")
    (folder / "throughput.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    try:
        import figure
    except ImportError:
        console.print("No figure: it needs matplotlib (pip install 'ensemble-sae[bench]').")
    else:
        figure.draw(report, folder / "throughput")
    console.print(f"Written: {folder}/throughput.md, .json, .png, .svg")
