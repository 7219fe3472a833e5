"""How long it takes to compare large dictionaries, and how much memory.

    python benchmarks/metrics.py                  some minutes on 2 cores
    python benchmarks/metrics.py --threads 1      CPU seconds hold beside other programs too

Times `closest`, `clusters` and `capacity` beside the bare matrix product of the same size,
interleaved in rounds, ratios within rounds; then each in a process of its own for its memory.
Writes metrics.md and .json into benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peak import peak_bytes
from torch import Tensor

from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.files import write_json
from ensemble_sae.metrics.geometry import capacity, clusters
from ensemble_sae.metrics.matching import closest
from ensemble_sae.randomness import generator

RESULTS = Path(__file__).parent / "results"
PRODUCT = "matrix product alone"
SLAB = 2048  # rows of the bare product at a time, into an array that is kept
WAYS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "closest": closest,
    "clusters": lambda atoms, _: clusters(atoms),
    "capacity": lambda atoms, _: capacity(atoms),
}


def inputs(atoms: int, d: int) -> tuple[Tensor, Tensor]:
    """Two dictionaries of random directions `[atoms, d]`."""
    draws = (generator(seed, "benchmark of metrics") for seed in range(2))
    first, second = (torch.randn(atoms, d, generator=draw) for draw in draws)
    return first, second


class Turn(NamedTuple):
    """Seconds by the clock, and of all threads together."""

    wall: float
    cpu: float


class Product:
    """All dot products of two dictionaries, and nothing done with them."""

    def __init__(self, atoms: int) -> None:
        self._out = torch.empty(min(SLAB, atoms), atoms)

    def __call__(self, atoms: Tensor, others: Tensor) -> None:
        """Compute them."""
        for slab in atoms.split(SLAB):
            torch.mm(slab, others.T, out=self._out[: slab.shape[0]])


def times(atoms: int, d: int, rounds: int) -> dict[str, list[Turn]]:
    """Every turn, by contestant. Turn r of all belongs to round r."""
    given = inputs(atoms, d)
    ways: dict[str, Callable[[Tensor, Tensor], Any]] = {PRODUCT: Product(atoms), **WAYS}
    for way in ways.values():
        way(given[0][:SLAB], given[1])  # threads start, SciPy is imported
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = Turn(time.perf_counter(), time.process_time())
            ways[name](*given)
            ended = Turn(time.perf_counter(), time.process_time())
            turns[name].append(Turn(ended.wall - began.wall, ended.cpu - began.cpu))
    return turns


def memory(name: str, atoms: int, d: int) -> float:
    """MiB that a contestant needs beyond its inputs: to be asked in a process of its own."""
    given = inputs(atoms, d)
    WAYS[name](*(one[:2] for one in given))
    before = peak_bytes(torch.device("cpu"))
    WAYS[name](*given)
    return (peak_bytes(torch.device("cpu")) - before) / 2**20


def measure(atoms: int, d: int, rounds: int) -> list[dict[str, Any]]:
    """A row per contestant."""
    turns = times(atoms, d, rounds)
    found = []
    for name, own in turns.items():
        ratios = [a.cpu / b.cpu for a, b in zip(own, turns[PRODUCT], strict=True)]
        row: dict[str, Any] = {
            "what": name,
            "wall_s": statistics.median(turn.wall for turn in own),
            "cpu_s": statistics.median(turn.cpu for turn in own),
            "of_product": statistics.median(ratios),
            "turns": [turn._asdict() for turn in own],
        }
        if name in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row["beyond_inputs_mib"] = pool.apply(memory, (name, atoms, d))
        found.append(row)
    return found


def about(command: list[str]) -> dict[str, Any]:
    """Hardware, versions, date and command."""
    packages = ("ensemble-sae", "torch", "numpy", "scipy")
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python benchmarks/metrics.py", *command]),
    }


def page(report: dict[str, Any]) -> str:
    """metrics.md."""
    of, atoms, d = report["about"], report["atoms"], report["d"]
    packages = ", ".join(f"{name} {version}" for name, version in of["packages"].items())
    lines = ["| what | seconds | CPU seconds | of the product | MiB beyond the inputs |"]
    lines.append("|---|--:|--:|--:|--:|")
    for row in report["rows"]:
        mib = f"{row['beyond_inputs_mib']:,.0f}" if "beyond_inputs_mib" in row else ""
        seconds = f"{row['wall_s']:.2f} | {row['cpu_s']:.2f} | {row['of_product']:.2f}x"
        lines.append(f"| {row['what']} | {seconds} | {mib} |")
    inputs_mib = atoms * d * 4 / 2**20
    return (
        f"# Comparing dictionaries\n\n{of['hardware']}, threads used: {of['threads']}; Python"
        f" {of['python']}, {packages}; {of['date']}.\nMade by `{of['command']}`.\n\n"
        f"{atoms:,} atoms of d {d} in float32, {inputs_mib:,.0f} MiB; `closest` looks for them"
        f" among as many others.\n\n" + "\n".join(lines) + "\n\n"
        f"Medians of {report['rounds']} interleaved rounds. *Seconds* are the clock's and grow"
        " where other programs share the cores;\n*CPU seconds* are those of all threads, and *of"
        " the product* is their ratio within rounds. The *matrix\nproduct alone* is all dot"
        " products of the two dictionaries, written into an array that is there\nalready."
        " `clusters` needs half of them, `capacity` none: it goes through the d x d matrix W^T W,"
        " in\nfloat64. The directions are random, so that `clusters` finds no pairs to join.\n"
    )


def main(arguments: list[str]) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", type=int, default=32_768)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = {"atoms": options.atoms, "d": options.d, "rounds": options.rounds}
    report = {"about": about(arguments), **sizes, "rows": measure(**sizes)}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "metrics.json", report)
    text = page(report)
    (options.out / "metrics.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
