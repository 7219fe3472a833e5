"""How fast the ensemble trains, against loops over single models and the hardware's limits.

Kernels x shapes x densities x numbers of members.

    python benchmarks/throughput.py                 some minutes on 2 cores
    python benchmarks/throughput.py --docs          the same, and the tables of README and docs
    python benchmarks/throughput.py --full          more numbers of members, longer
    python benchmarks/throughput.py --device cuda

Writes throughput.md, .json, .png and .svg into benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import show
import torch
from contestants import RANKED, TRAINERS, Shape
from rich.console import Console

from ensemble_sae.dispatch.launcher import ALLOCATOR

HERE = Path(__file__).parent
SIZES = (64, 128, 256, 512, 1024, 2048)
SMALL = Shape("small", 128, (256,), 256, "untied")
LARGE = Shape("large", 512, (2048,), 1024, "untied")
MIXED = Shape("mixed", 256, SIZES, 4096, "tied")
TINY = Shape("tiny", 8, (16, 32), 32, "untied")
FEW = 0.02  # the density of what is only measured at one


@dataclass(frozen=True)
class Case:
    """A shape and numbers of members."""

    shape: Shape
    members: tuple[int, ...]

    def contestants(self, there: list[str]) -> list[str]:
        """Those that make sense: the sparse kernel for sparse codes; the generic one, which takes
        no notice of densities, at one of them."""
        density, ranked = self.shape.density, self.shape.signature in RANKED
        left_out = {"sparse": density is None, "generic": ranked or density != FEW}
        return [name for name in there if not left_out.get(name)]


def _at(shape: Shape, densities: tuple[float | None, ...], *members: int) -> list[Case]:
    return [Case(replace(shape, density=density), members) for density in densities]


def _ranked(shape: Shape, *members: int) -> list[Case]:
    return [Case(replace(shape, signature=name, density=FEW), members) for name in RANKED]


DENSITIES = (0.005, FEW, 0.08, 0.12, None)
BOTH = (FEW, None)
QUICK = [
    *_at(SMALL, BOTH, 1, 8, 32),
    *_at(LARGE, DENSITIES, 1, 8),
    *_ranked(LARGE, 8),
    *_at(MIXED, BOTH, 6, 12),
]
FULL = [
    *_at(SMALL, DENSITIES, 1, 2, 4, 8, 16, 32, 64),
    *_ranked(SMALL, 32),
    *_at(LARGE, DENSITIES, 1, 2, 4, 8, 16, 32),
    *_ranked(LARGE, 8),
    *_at(MIXED, DENSITIES, 6, 12, 24, 36, 60),
]
GRIDS = {"quick": QUICK, "full": FULL, "tiny": _at(TINY, (0.02, None), 2, 4)}
AGAIN = {  # with the system's own allocator settings
    "quick": [*_at(SMALL, BOTH, 32), *_at(LARGE, (FEW,), 1), *_at(MIXED, (None,), 6)],
    "full": FULL,
    "tiny": _at(TINY, (None,), 2),
}
# seconds of a cell, its fewest and most rounds, and about how long a turn lasts
PACE = {
    "quick": {"seconds": 2.5, "rounds": [5, 40], "turn_s": 0.06},
    "full": {"seconds": 20.0, "rounds": [7, 100], "turn_s": 0.1},
    "tiny": {"seconds": 0.1, "rounds": [2, 3], "turn_s": 0.001},
}
LOADED = {"small": (1, 32), "large": (1,), "mixed": (6,), "tiny": (2,)}  # while data is loaded
REMEMBERED = {"small": 32, "large": 8, "mixed": 12, "tiny": 2}  # members whose memory is compared
CHUNK_BATCHES = {"small": 128, "large": 16, "mixed": 8, "tiny": 4}


def settings(device: torch.device) -> list[str]:
    """What freed memory does: `kept` in the process, as a training worker has it; `returned`."""
    glibc = platform.libc_ver()[0] == "glibc"
    return ["kept", "returned"] if device.type == "cpu" and glibc else ["returned"]


def jobs(grid: str, contestants: list[str], options: argparse.Namespace) -> Iterator[dict]:
    """All jobs. Steps of one shape are one: its contestants need compiling once."""
    device = torch.device(options.device)
    common = {"device": options.device, "threads": options.threads}
    for setting, cases in zip(settings(device), (GRIDS[grid], AGAIN[grid]), strict=False):
        for _, own in itertools.groupby(cases, lambda case: case.shape.name):
            job = {"kind": "steps", "setting": setting, **PACE[grid]}
            described = [_described(case, contestants, options.signature) for case in own]
            yield {**common, **job, "cases": described}
    worker_like = {**common, "setting": settings(device)[0]}
    for shape in dict.fromkeys(replace(case.shape, density=FEW) for case in GRIDS[grid]):
        if shape.signature in RANKED:
            continue
        chosen = {**worker_like, "shape": asdict(_signed(shape, options.signature))}
        for members in LOADED[shape.name]:
            chunks = CHUNK_BATCHES[shape.name]
            yield {**chosen, "kind": "loading", "members": members, "chunk_batches": chunks}
        for name in contestants if grid != "tiny" else ["sparse"]:
            if name not in ("auto", "compiled"):  # one of the others, and a compiler's own memory
                members = REMEMBERED[shape.name]
                yield {**chosen, "kind": "memory", "members": members, "contestant": name}


def _described(case: Case, contestants: list[str], signature: str | None) -> dict[str, Any]:
    """For JSON."""
    shape, there = _signed(case.shape, signature), case.contestants(contestants)
    return {"shape": asdict(shape), "members": case.members, "contestants": there}


def _signed(shape: Shape, signature: str | None) -> Shape:
    if signature is None or shape.signature in RANKED:
        return shape
    return replace(shape, signature=signature)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a new process with the environment that it asks for."""
    environment = {name: v for name, v in os.environ.items() if name != "GLIBC_TUNABLES"}
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment |= dict.fromkeys(pools, str(job["threads"]))
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
            name = (job.get("shape") or job["cases"][0]["shape"])["name"]
            what = f"{job['kind']}, {name} shape, freed memory {job['setting']}"
            status.update(f"{number}/{len(timed)}: {what}")
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
    found = ["ensemble-sae", "torch", "torchopt"]
    found += ["numba"] if importlib.util.find_spec("numba") else []
    packages = {name: importlib.metadata.version(name) for name in found}
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
    signatures = ["untied", "tied", "affine"]
    parser.add_argument("--signature", choices=signatures, help="of all that are of the relu kind")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder to write into")
    parser.add_argument("--docs", action="store_true", help="write the pages' tables too")
    options = parser.parse_args(arguments)
    options.command = [word for word in arguments if word not in ("--out", str(options.out))]
    options.grid = options.grid or ("quick" if options.device == "cpu" else "full")
    if options.docs and options.grid == "tiny":
        parser.error("--docs: tiny shapes are not for the pages")
    return options


def main(arguments: list[str]) -> None:
    """Measure, show, write."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = measure(options.grid, options, console)
    show.write(report, options.out, console)
    if options.docs:
        import readme

        readme.write_throughput(report)


if __name__ == "__main__":
    main(sys.argv[1:])
