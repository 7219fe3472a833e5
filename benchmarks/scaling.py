"""Time and memory by the number of members and workers, against the cost model.

    python benchmarks/scaling.py                  some minutes on 2 cores
    python benchmarks/scaling.py --device cuda    1 worker, and one for every GPU
    python benchmarks/scaling.py --fit            prices that fit what is in the results; no run

Workers are processes as a sweep starts them (the same allocator settings) that step their shares of
the members at the same time, on batches of their own making; there is no dispatcher and no file of
activations. Writes scaling.md, .json, .png and .svg into benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scaling_page import draw, page

from ensemble_sae.dispatch.cost import PRICES, Price, Speeds, Stack, Way, work_of
from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.dispatch.launcher import ALLOCATOR

HERE = Path(__file__).parent
DENSITY = 0.02
SMALL = {"d": 64, "n_dict": 128, "rows": 256}
MIDDLE = {"d": 128, "n_dict": 512, "rows": 512}
TINY = {"d": 4, "n_dict": 8, "rows": 16}
FULL = [(SMALL, (1, 8, 64, 512)), (MIDDLE, (1, 8, 64))]
QUICK = [(TINY, (2,))]
WAYS: tuple[Way, ...] = ("dense", "sparse")
STRENGTH = 0.02  # of what keeps fitted prices near the present ones


def jobs(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The jobs of each cell: one per worker, each with its share of the members."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    is_cpu = options.device == "cpu"
    most = 2 if is_cpu else torch.cuda.device_count()
    pace = {"seconds": 0.0, "rounds": 2} if options.tiny else {"seconds": 2.0, "rounds": 5}
    for shape, members in QUICK if options.tiny else FULL:
        for way in WAYS if is_cpu else WAYS[:1]:
            for workers in sorted({1, most}):
                threads = max(1, (cores or 1) // workers)
                for count in members:
                    shares = [(count + i) // workers for i in range(workers)]
                    if 0 in shares:
                        continue
                    common = {**shape, "density": DENSITY, "kernel": way, "threads": threads}
                    yield [
                        {
                            **common,
                            **pace,
                            "members": share,
                            "device": "cpu" if is_cpu else f"cuda:{i}",
                        }
                        for i, share in enumerate(shares)
                    ]


def run_cell(cell: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the workers of a cell answer; nobody is timed before all are ready."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_start(job)) for job in cell]
        for worker, job in zip(workers, cell, strict=True):
            _tell(worker, json.dumps(job))
        for worker in workers:
            _line(worker)  # it is ready
        for worker in workers:
            _tell(worker, "go")
        return [json.loads(_line(worker)) for worker in workers]


def _start(job: dict[str, Any]) -> subprocess.Popen[str]:
    threads = str(job["threads"])
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = os.environ | dict.fromkeys(pools, threads)
    if platform.libc_ver()[0] == "glibc":
        environment["GLIBC_TUNABLES"] = ALLOCATOR
    return subprocess.Popen(
        [sys.executable, str(HERE / "scaling_worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def _tell(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a worker of the benchmark ended early; what it said is above")
    return line


def summary(cell: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """A cell: the slowest worker's time, the largest worker's memory, and both as predicted."""
    slowest = max(answers, key=lambda a: statistics.median(a["seconds"]))
    largest = max(answers, key=lambda a: a["bytes"])
    pairs = zip(slowest["predicted_seconds"], slowest["seconds"], strict=True)
    return {
        **{name: cell[0][name] for name in ("d", "n_dict", "rows", "kernel", "threads")},
        "members": sum(job["members"] for job in cell),
        "workers": len(cell),
        "seconds": statistics.median(slowest["seconds"]),
        "predicted_seconds": statistics.median(slowest["predicted_seconds"]),
        "time_ratio": statistics.quantiles([p / s for p, s in pairs], n=4, method="inclusive"),
        "rounds": len(slowest["seconds"]),
        "bytes": largest["bytes"],
        "predicted_bytes": largest["predicted_bytes"],
        "memory_ratio": largest["predicted_bytes"] / largest["bytes"],
        "base_bytes": largest["base_bytes"],
        "stack": slowest["stack"],
        "speeds": [statistics.median(column) for column in zip(*slowest["speeds"], strict=True)],
    }


def fitted(cells: list[dict[str, Any]]) -> dict[Way, Price]:
    """Prices that bring the predictions nearest to the times, in the squares of relative errors.

    Two shapes cannot tell all prices apart: what the times do not say stays as it is.
    """
    found: dict[Way, Price] = {}
    for way in sorted({cell["kernel"] for cell in cells}):
        rows, wanted = [], []
        for cell in (cell for cell in cells if cell["kernel"] == way):
            parts, fixed = _parts(Stack(**cell["stack"]), Speeds(*cell["speeds"]))
            rows.append([part / cell["seconds"] for part in parts])
            wanted.append(1 - fixed / cell["seconds"])
        near = STRENGTH * len(rows) * np.eye(len(Price._fields))
        left, right = np.vstack([rows, near]), np.append(wanted, np.diag(near))
        factors = np.linalg.lstsq(left, right, rcond=None)[0].clip(min=0)
        found[way] = Price(*(float(f) * p for f, p in zip(factors, PRICES[way], strict=True)))
    return found


def _parts(stack: Stack, speeds: Speeds) -> tuple[list[float], float]:
    """The seconds that each price of a stack's kernel stands for, and those of no price."""
    price, none = PRICES[stack.way], Price(0, 0, 0, 0, 0, 0, 0)
    fixed = work_of(stack, none).seconds(speeds)
    alone = [none._replace(**{name: value}) for name, value in price._asdict().items()]
    return [work_of(stack, p).seconds(speeds) - fixed for p in alone], fixed


def about(command: list[str]) -> dict[str, Any]:
    """Hardware, versions, date and command."""
    packages = ("ensemble-sae", "torch", "torchopt", "numba")
    return {
        "hardware": hardware(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python benchmarks/scaling.py", *command]),
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """What to measure, and where to write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds: to see that it works")
    parser.add_argument("--fit", action="store_true", help="fit prices to the results; no run")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder to write into")
    options = parser.parse_args(arguments)
    options.command = [word for word in arguments if word not in ("--out", str(options.out))]
    return options


def main(arguments: list[str]) -> None:
    """Measure, show, write; or fit."""
    options, console = parse(arguments), Console(width=120)
    path = options.out / "scaling.json"
    if options.fit:
        for way, price in fitted(json.loads(path.read_text(encoding="utf-8"))["cells"]).items():
            numbers = ", ".join(f"{value:.4g}" for value in price)
            console.print(f'"{way}": Price({numbers}),', highlight=False)
        return
    report: dict[str, Any] = {"about": about(options.command), "cells": []}
    todo = list(jobs(options))
    with console.status("") as status:
        for number, cell in enumerate(todo, 1):
            count = sum(job["members"] for job in cell)
            status.update(f"{number}/{len(todo)}: {cell[0]['kernel']}, {count} members")
            report["cells"].append(summary(cell, run_cell(cell)))
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = page(report)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(report, path)
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
