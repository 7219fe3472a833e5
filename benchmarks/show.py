"""The report as tables on screen and in Markdown, as JSON, and as a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from contestants import KERNELS, LOOPS
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

SETTINGS = {
    "kept": "freed memory kept by the process (a training worker's allocator settings)",
    "returned": "freed memory returned to the system (the system's own settings)",
}
MEDIAN = 1  # of [lower quartile, median, upper quartile]

HOW_TO_READ = """\
* **auto**, **dense**, **sparse**, **generic**: `FunctionalEnsemble.step` with that `kernel` (see
  `docs/kernels.md`); `auto` is what a sweep uses, and **auto takes** what it has chosen. The
  generic one, the vmapped autograd path that any signature of your own gets, takes no notice of
  densities.
* **loop**: single models one after the other: the same loss through autograd, then
  `torch.optim.Adam(fused=True)`. **compiled**: that loop with the loss through `torch.compile`.
* All have the same first members and see the same batches of normally distributed rows. Before
  anything is timed they train for two steps, and the losses in the second are compared (largest
  relative difference here: {difference:.1e}). Then they start anew with learning rate 0, so that
  densities stay what they are; Adam's arithmetic is done all the same.
* **active**: the share of features that are active in a row, as measured. About a half are as
  members are initialised; else it is set by the encoder's bias, or by k.
* **ms**: one step of all members, median over turns. All contestants take turns in one process;
  the ratios are medians of ratios within rounds.
* **of limit**: the time of the five matrix products of a dense step alone, into arrays that are
  there already, over the time of a whole step (Adam and metrics included). The sparse kernel does
  one of the five, so it may exceed 1; its bound is 5.
* **over loop**, **over compiled**: the time of that loop over the time of a step.
* **limit of peak**: 10 B d n operations per member and step, as a share of what one large square
  product reaches in the same round (here about {peak:.0f} GFLOP/s).
* **SAE-rows/s**: batch rows times members, per second, by auto.
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
            justify: Any = "left" if place < self.words else "right"
            table.add_column(column.replace(" ", "\n"), justify=justify, no_wrap=True)
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
        yield _times(f"Milliseconds of a step; {SETTINGS[setting]}", cells)
        yield _ratios(f"Speed; {SETTINGS[setting]}", cells)
    yield _memory(report["memory"])
    yield _loading(report["loading"])


WHO = ["shape", "signature", "active", "members"]


def _who(cell: dict[str, Any]) -> list[str]:
    return [cell["shape"], cell["signature"], share(cell["active"]), str(cell["members"])]


def _times(title: str, cells: list[dict[str, Any]]) -> Table:
    timed = dict.fromkeys(name for cell in cells for name in cell["contestants"] if name != "peak")
    order = [name for name in (*KERNELS, *LOOPS, "limit") if name in timed]
    table = Table(title, [*WHO, *order, "auto takes"], words=2)
    for cell in cells:
        found = {name: _ms(times["median_ms"]) for name, times in cell["contestants"].items()}
        times = [found.get(name, "") for name in order]
        table.rows.append([*_who(cell), *times, auto_takes(cell)])
    return table


def _ratios(title: str, cells: list[dict[str, Any]]) -> Table:
    loops = [name for name in LOOPS if any(name in cell["over"] for cell in cells)]
    asked = [("of_limit", name) for name in ("auto", "dense", "sparse", "loop")]
    asked += [("loop", name) for name in ("auto", "dense", "sparse")]
    asked += [(name, "auto") for name in loops if name != "loop"]
    heads = [f"{'of limit' if over == 'of_limit' else f'over {over}'} {n}" for over, n in asked]
    table = Table(title, [*WHO, *heads, "limit of peak", "SAE-rows/s"], words=2)
    for cell in cells:
        rows = cell["batch"] * cell["members"] / (cell["contestants"]["auto"]["median_ms"] / 1000)
        ratios = [ratio(cell, over, name) for over, name in asked]
        peak = f"{cell['limit_of_peak'][MEDIAN]:.0%}"
        table.rows.append([*_who(cell), *ratios, peak, f"{rows:,.0f}"])
    return table


def ratio(cell: dict[str, Any], over: str, name: str) -> str:
    """How many times as fast as the limit (`of_limit`) or a loop a contestant is; empty if
    not measured."""
    found = cell["of_limit"] if over == "of_limit" else cell["over"].get(over, {})
    return f"{found[name][MEDIAN]:.2f}x" if name in found else ""


def share(value: float) -> str:
    """Of active features."""
    return f"{100 * value:.2g}%"


def auto_takes(cell: dict[str, Any]) -> str:
    """The kernel that `auto` has chosen."""
    sparse, members = cell["auto_sparse"], cell["members"]
    return {0: "dense", members: "sparse"}.get(sparse, f"sparse for {sparse}")


def _memory(found: list[dict[str, Any]]) -> Table:
    columns = ["shape", "members", "contestant", "weights MiB", "peak MiB"]
    title = "Peak memory while training at 2% active, above that of a process at rest"
    table = Table(title, columns, words=3)
    table.rows = [
        [
            row["shape"],
            str(row["members"]),
            row["contestant"],
            f"{row['weights_mib']:,.0f}",
            f"{row['above_start_mib']:,.0f}",
        ]
        for row in found
    ]
    return table


def _loading(found: list[dict[str, Any]]) -> Table:
    columns = ["shape", "active", "members", "chunks", "chunk MiB"]
    columns += ["first ms", "waiting", "gathering"]
    table = Table("Data loading while training", columns)
    table.rows = [
        [
            row["shape"],
            share(row["active"]),
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
        "![Speed against the dense limit and the loop, by density and by members](throughput.png)",
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
    return f"d {cell['d']}, dictionary {dicts}, batch {cell['batch']}"


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
