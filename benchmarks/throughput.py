"""How fast the ensemble trains, against loops over single models and the hardware's limits.

    python benchmarks/throughput.py                 a few minutes on 2 cores
    python benchmarks/throughput.py --full          all numbers of members
    python benchmarks/throughput.py --device cuda

Writes throughput.md, .json, .png and .svg into benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import show
import torch
from contestants import TRAINERS, Shape
from rich.console import Console

from ensemble_sae.dispatch.launcher import ALLOCATOR

HERE = Path(__file__).parent
SIZES = (64, 128, 256, 512, 1024, 2048)
SMALL = Shape("small", 128, (256,), 256, "untied")
LARGE = Shape("large", 512, (2048,), 1024, "untied")
MIXED = Shape("mixed", 256, SIZES, 4096, "tied")
TINY = Shape("tiny", 8, (16, 32), 32, "untied")

POWERS = (1, 2, 4, 8, 16, 32, 64)
GRIDS: dict[str, list[tuple[Shape, tuple[int, ...]]]] = {
    "quick": [(SMALL, POWERS), (LARGE, (1, 8)), (MIXED, (6, 12))],
    "full": [(SMALL, POWERS), (LARGE, POWERS), (MIXED, (6, 12, 24, 36, 60))],
    "tiny": [(TINY, (2, 4))],
}
# seconds of a cell, its fewest and most rounds, and about how long a turn lasts
PACE = {
    "quick": {"seconds": 2.5, "rounds": [5, 40], "turn_s": 0.06},
    "full": {"seconds": 20.0, "rounds": [5, 100], "turn_s": 0.1},
    "tiny": {"seconds": 0.1, "rounds": [2, 3], "turn_s": 0.001},
}
LOADED = {SMALL: (1, 32), LARGE: (1,), MIXED: (6,), TINY: (2,)}  # members while data is loaded
REMEMBERED = {SMALL: 32, LARGE: 8, MIXED: 12, TINY: 2}  # members whose memory is compared
CHUNK_BATCHES = {SMALL: 128, LARGE: 16, MIXED: 8, TINY: 4}


def settings(device: torch.device) -> list[str]:
    """What freed memory does: `kept` in the process, as a training worker has it; `returned`."""
    glibc = platform.libc_ver()[0] == "glibc"
    return ["kept", "returned"] if device.type == "cpu" and glibc else ["returned"]


def jobs(grid: str, contestants: list[str], options: argparse.Namespace) -> Iterator[dict]:
    """All jobs, the expensive ones last."""
    device = torch.device(options.device)
    common = {"device": options.device, "threads": options.threads}
    grids = [(_signed(shape, options.signature), shape, ks) for shape, ks in GRIDS[grid]]
    for setting in settings(device):
        for shape, _, members in grids:
            job = {"kind": "steps", "setting": setting, "members": members, **PACE[grid]}
            yield {**common, **job, "shape": asdict(shape), "contestants": contestants}
    worker_like = {**common, "setting": settings(device)[0]}
    for shape, plain, _ in grids:
        for members in LOADED[plain]:
            job = {"kind": "loading", "members": [members], "chunk_batches": CHUNK_BATCHES[plain]}
            yield {**worker_like, **job, "shape": asdict(shape)}
        for name in contestants if grid != "tiny" else ["ensemble"]:
            job = {"kind": "memory", "members": [REMEMBERED[plain]], "contestants": [name]}
            yield {**worker_like, **job, "shape": asdict(shape)}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a new process with the environment that it asks for."""
    environment = {name: v for name, v in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"OMP_NUM_THREADS": str(job["threads"]), "MKL_NUM_THREADS": str(job["threads"])}
    if job["setting"] == "kept":
        environment["GLIBC_TUNABLES"] = ALLOCATOR
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "job.json"), Path(folder, "result.json")
        asked.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, str(HERE / "job.py"), str(asked), str(answered)]
        subprocess.run(command, env=environment, check=True)
        return json.loads(answered.read_text(encoding="utf-8"))


def measure(grid: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Do all jobs, one after the other: the report that is written as JSON."""
    contestants, notes = choose_contestants(grid, torch.device(options.device))
    report: dict[str, Any] = {"about": about(options), "steps": {}, "loading": [], "memory": []}
    todo = list(jobs(grid, contestants, options))
    timed = [job for job in todo if job["kind"] != "memory"]
    with console.status("") as status:
        for number, job in enumerate(timed, 1):
            members = ", ".join(map(str, job["members"]))
            what = f"{job['kind']}, {job['shape']['name']} shape, {members} members"
            status.update(f"{number}/{len(timed)}: {what}, freed memory {job['setting']}")
            result = run_job(job)
            if job["kind"] == "steps":
                report["steps"].setdefault(job["setting"], []).extend(result["cells"])
                notes += result["notes"]
            else:
                report["loading"].append(result)
        status.update("memory")
        with ThreadPoolExecutor(2) as pool:  # nothing is timed here
            report["memory"] += pool.map(run_job, [job for job in todo if job["kind"] == "memory"])
    return {**report, "notes": sorted(set(notes))}


def choose_contestants(grid: str, device: torch.device) -> tuple[list[str], list[str]]:
    """All trainers that can run here, and notes about the others."""
    without = [name for name in TRAINERS if name != "compiled"]
    if grid == "tiny":
        return without, ["compiled loop left out: --tiny is to be quick"]
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return without, ["compiled loop left out: torch.compile needs a C++ compiler"]
    return list(TRAINERS), []


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions, date and command (without the folder that the results go to)."""
    packages = {p: importlib.metadata.version(p) for p in ("ensemble-sae", "torch", "torchopt")}
    device = torch.device(options.device)
    gpu = [f"{torch.cuda.get_device_name(device)}, "] if device.type == "cuda" else []
    return {
        "hardware": "".join([*gpu, f"{_cpu_name()}, {_cores()} cores"]),
        "threads": options.threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": packages,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python benchmarks/throughput.py", *options.command]),
    }


def _signed(shape: Shape, signature: str | None) -> Shape:
    return replace(shape, signature=signature) if signature else shape


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """What to measure, and where to write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    for grid, words in (
        ("quick", "few members of the large shapes, short (the default on a CPU)"),
        ("full", "all numbers of members, long"),
        ("tiny", "seconds: to see that it works"),
    ):
        size.add_argument(f"--{grid}", dest="grid", action="store_const", const=grid, help=words)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=_cores(), help="of tensor operations")
    parser.add_argument("--signature", choices=["untied", "tied", "affine"], help="for all shapes")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder to write into")
    options = parser.parse_args(arguments)
    options.command = [word for word in arguments if word not in ("--out", str(options.out))]
    options.grid = options.grid or ("quick" if options.device == "cpu" else "full")
    return options


def main(arguments: list[str]) -> None:
    """Measure, show, write."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = measure(options.grid, options, console)
    show.write(report, options.out, console)


if __name__ == "__main__":
    main(sys.argv[1:])
