"""Whole sweeps by one kernel and by another: time of training, and what comes of it.

    python benchmarks/training.py default toy_96 [--docs]

Each sweep is trained by every kernel in turn, on the same rows in the same order. toy_96 is trained
in its quick version, and once more from another seed: how far members are apart then is the noise
that kernels are to stay within. Writes training.md and .json into benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from readme import replace

import ensemble_sae
from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.files import write_json
from ensemble_sae.sweep import load_sweep

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "kernels.md"
QUICK = {"toy_96"}
KERNELS = {"default": ("dense", "auto"), "toy_96": ("generic", "dense", "auto")}
HEADER = (
    "| sweep | members | kernel | training | over the first | FVU moved by | L0 moved by |\n"
    "|---|--:|---|--:|--:|--:|--:|"
)
SEED = "another seed"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train(sweep: str, kernel: str, folder: Path, settings: list[str], data: Path) -> dict[str, Any]:
    """Train a sweep by its command: time of training, table, and the machine's speed before."""
    run = folder / f"{sweep}-{kernel}-{len(settings)}"
    words = [sweep, "--kernel", kernel, "--run", run, "--data-dir", data, "--wandb", "off"]
    words += ["--devices", f"cpu:{CORES}"]
    words += ["--quick"] * (sweep in QUICK) + [w for s in settings for w in ("--set", s)]
    speed = product_speed()
    command = [sys.executable, "-m", "ensemble_sae.big_sweep", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    done = ensemble_sae.load(run)
    return {
        "seconds": done.status["busy_s"] / CORES,  # one worker per core, all as long at work
        "gflop_per_s_before": speed / 1e9,
        "table": done.members,
    }


def product_speed(size: int = 1536, seconds: float = 2.0) -> float:
    """FLOP/s of a matrix product: how much of the machine is ours at the moment."""
    a, began, done = torch.randn(size, size), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        torch.mm(a, a)
        done += 1
    return 2 * size**3 * done / (time.perf_counter() - began)


def moved(table: pd.DataFrame, first: pd.DataFrame, column: str) -> float:
    """The median over members of |a / b - 1|."""
    both = table.join(first.add_suffix(" first"))
    both = both[both[f"{column} first"] > 0]
    return float((both[column] / both[f"{column} first"] - 1).abs().median())


def compared(sweep: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each run: times over the first one's, and how far its members are from those."""
    first = runs[0]
    return [
        {
            "sweep": sweep,
            "members": len(run["table"]),
            "kernel": run["name"],
            "seconds": run["seconds"],
            "speedup": first["seconds"] / run["seconds"],
            "gflop_per_s_before": run["gflop_per_s_before"],
            "fvu": moved(run["table"], first["table"], "fvu") if run is not first else None,
            "l0": moved(run["table"], first["table"], "l0") if run is not first else None,
        }
        for run in runs
    ]


def line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    apart = [f"{100 * row[key]:.2g}%" if row[key] is not None else "" for key in ("fvu", "l0")]
    cells = [
        f"`{row['sweep']}`",
        row["members"],
        row["kernel"],
        f"{row['seconds']:.0f} s",
        f"{row['speedup']:.2f}x",
        *apart,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: list[str]) -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", nargs="+", choices=list(KERNELS))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--set", action="append", default=[], help="as of big_sweep, for all")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--docs", action="store_true", help=f"write the table into {DOCS.name}")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for sweep in options.sweeps:
        rows += sweep_rows(sweep, options)
        print("\n".join([HEADER, *map(line, rows)]), flush=True)
    about = {"hardware": hardware(), "torch": torch.__version__, "settings": options.set}
    about["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    write_json(options.out / "training.json", {"about": about, "rows": rows})
    text = "\n".join([HEADER, *map(line, rows)]) + "\n"
    (options.out / "training.md").write_text(page(about, text), encoding="utf-8")
    if options.docs:
        found = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(replace(found, "training", text), encoding="utf-8")


def sweep_rows(sweep: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one sweep in all ways."""
    ways: list[tuple[str, str, list[str]]] = [(kernel, kernel, []) for kernel in KERNELS[sweep]]
    if sweep in QUICK:
        seed = load_sweep(sweep)[0].train.seed + 1
        ways.append((SEED, KERNELS[sweep][-1], [f"train.seed={seed}"]))
    with tempfile.TemporaryDirectory() as name:
        runs = []
        for said, kernel, more in ways:
            print(f"{sweep}: {said}", flush=True)
            run = train(sweep, kernel, Path(name), [*options.set, *more], options.data_dir)
            runs.append({"name": said, **run})
        return compared(sweep, runs)


def page(about: dict[str, Any], text: str) -> str:
    """training.md."""
    return (
        "# Whole sweeps by kernel\n\n"
        f"{about['hardware']}; torch {about['torch']}; {about['date']}. Made by"
        " `python benchmarks/training.py default toy_96 --docs`.\n\n"
        f"{text}\n"
        "*Training*: seconds a worker spent on training steps, without harvest and evaluation.\n"
        "*Moved by*: the median over members of how far held-out FVU and L0 are from those of the\n"
        "first kernel, relative; *another seed* is the last kernel again, from another seed.\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
