"""How fast other libraries train the same number of autoencoders, beside ours.

    python benchmarks/peers.py                    some minutes on 2 cores, and installing
    python benchmarks/peers.py --only sparsify

Installs each peer into an environment of its own under build/peers (a few GB in all) and runs it
there: benchmarks/peers/run_*.py. Writes peers.md, .json, .png and .svg into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import throughput
import torch
from contestants import Shape
from rich.console import Console
from safetensors.torch import save_file

from ensemble_sae.dispatch.launcher import ALLOCATOR

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import compared
from environments import ENVIRONMENTS, Environment, NotInstalled, python_of

HERE = Path(__file__).resolve().parent
SIZES = {
    "large": {"d": 512, "n_dict": 2048, "batch": 1024, "members": 8, "k": 40},
    "tiny": {"d": 16, "n_dict": 100, "batch": 32, "members": 2, "k": 2},
}
STEPS = {"large": 3, "tiny": 2}  # of a turn
BATCHES = 4
REST_S = 0.1  # between turns: threads that wait for work may spin for a moment

RELU, SPARSER, TOPK = "relu, 2%", "relu, 0.5%", "topk"
OURS: dict[str, dict[str, Any]] = {
    RELU: {"signature": "untied"},
    SPARSER: {"signature": "untied", "density": 0.005},
    TOPK: {"signature": "topk"},
}
"""Jobs of our runner. Where no share of active features is given, it is k / n: 2% at most."""


@dataclass(frozen=True)
class Peer:
    """A library, how it is run, and which of ours it is held against."""

    name: str
    environment: Environment
    package: str
    runner: Path
    against: tuple[str, ...]
    job: dict[str, Any] = field(default_factory=dict)


def _peers() -> Iterator[Peer]:
    def runner(name: str) -> Path:
        return HERE / "peers" / f"run_{name}.py"

    def peer(name: str, of: str, package: str, against: tuple[str, ...], **job: str) -> Peer:
        return Peer(name, ENVIRONMENTS[of], package, runner(of), against, job)

    relu = (RELU, SPARSER)
    yield peer("dictionary_learning", "dictionary_learning", "dictionary-learning", relu)
    yield peer("SAELens", "saelens", "sae-lens", relu)
    yield peer("sparsify", "sparsify", "eai-sparsify", (TOPK,), optimizer="signum")
    yield peer("sparsify, Adam", "sparsify", "eai-sparsify", (TOPK,), optimizer="adam")


PEERS = tuple(_peers())
Key = tuple[str, str]  # a contestant's name, and its allocator settings


class Gone(Exception):
    """A contestant's process has ended; the message is the last that it said."""


class Process:
    """A contestant, built and waiting for its turn."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def answer(self) -> dict[str, Any]:
        """The next line that is meant for us; libraries print things too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise Gone(said[-1] if said else "its process ended without a word")

    def turn(self, steps: int) -> float:
        """Take steps; seconds per step."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: the answer says why
            self._process.stdin.write(f"turn {steps}\n")
            self._process.stdin.flush()
        return self.answer()["seconds"] / steps

    def end(self) -> None:
        """Let the process go."""
        self._process.kill()
        with self._process:
            pass


@dataclass(frozen=True)
class Contestant:
    """One process: ours, or a peer with one kind of allocator settings."""

    name: str
    allocator: str
    python: str
    runner: Path
    job: dict[str, Any]

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.name, self.allocator

    def start(self, common: dict[str, Any], folder: Path) -> Process:
        """A new process, which builds its models by itself."""
        job = folder / f"{self.name}, {self.allocator}.json"
        job.write_text(json.dumps({**common, **self.job}), encoding="utf-8")
        command = [self.python, str(self.runner), str(job)]
        return Process(command, self._environment(common["threads"]), job.with_suffix(".log"))

    def _environment(self, threads: int) -> dict[str, str]:
        hidden = ("GLIBC_TUNABLES", "PYTHONPATH")
        found = {name: value for name, value in os.environ.items() if name not in hidden}
        pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        found |= dict.fromkeys(pools, str(threads))
        found |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        if self.allocator == "ours":
            found["GLIBC_TUNABLES"] = ALLOCATOR
        return found


def contestants(peers: list[tuple[Peer, str]], sizes: dict[str, int]) -> list[Contestant]:
    """Ours that some peer is held against, and every peer with both kinds of settings."""
    share = {"density": sizes["k"] / sizes["n_dict"]}
    needed = {name for peer, _ in peers for name in peer.against}
    runner = HERE / "peers" / "run_ours.py"
    found = [
        Contestant(name, "ours", sys.executable, runner, {**share, **job})
        for name, job in OURS.items()
        if name in needed
    ]
    found += [
        Contestant(peer.name, allocator, python, peer.runner, peer.job)
        for peer, python in peers
        for allocator in compared.ALLOCATORS
    ]
    return found


def install(
    peers: list[Peer], say: Callable[[str], None]
) -> tuple[list[tuple[Peer, str]], list[str]]:
    """The peers with their interpreters, and notes about those that cannot be installed."""
    found, notes = [], []
    failed: dict[Environment, str] = {}
    for peer in peers:
        if peer.environment not in failed:
            try:
                found.append((peer, python_of(peer.environment, say)))
                continue
            except NotInstalled as error:
                failed[peer.environment] = str(error)
        notes.append(f"{peer.name} left out: not installed: {failed[peer.environment]}")
    return found, notes


class Field:
    """All contestants, each in its process. A peer whose process ends is taken out, with a note."""

    def __init__(self, all_of_them: list[Contestant], common: dict[str, Any], folder: Path) -> None:
        self.notes: list[str] = []
        self.facts: dict[Key, dict[str, Any]] = {}
        # All at once: nothing is timed while they build their models.
        self._processes = {one.key: one.start(common, folder) for one in all_of_them}

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.end()

    def get_ready(self, say: Callable[[str], None]) -> None:
        """Wait until all models are built; `facts` has what each tells of itself."""
        for key in list(self._processes):
            say(f"{key[0]}: building its models")
            with self._unless_gone(key):
                self.facts[key] = self._processes[key].answer()

    def take_turns(
        self, steps: int, rounds: int, say: Callable[[str], None]
    ) -> dict[Key, list[float]]:
        """A turn of each to warm up, then the rounds; seconds per step of every turn."""
        turns: dict[Key, list[float]] = {key: [] for key in self._processes}
        order = list(turns)
        for number in range(rounds + 1):
            for key in order:
                if key not in self._processes:
                    continue
                say(f"round {number} of {rounds}: {key[0]}, {compared.ALLOCATORS[key[1]]}")
                time.sleep(REST_S)
                with self._unless_gone(key):
                    turns[key].append(self._processes[key].turn(steps))
            order = order[1:] + order[:1]
        return {key: turns[key][1:] for key in self._processes}

    @contextmanager
    def _unless_gone(self, key: Key) -> Iterator[None]:
        try:
            yield
        except Gone as gone:
            if key[0] in OURS:
                raise
            self.notes.append(f"{key[0]}, {compared.ALLOCATORS[key[1]]}, left out: {gone}")
            self._processes.pop(key).end()


def ratios(
    peers: list[tuple[Peer, str]], turns: dict[Key, list[float]], facts: dict[Key, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Each peer over each of ours that it is held against, within rounds."""
    for peer, _ in peers:
        for ours in peer.against:
            for allocator in compared.ALLOCATORS:
                key = peer.name, allocator
                if key not in turns:
                    continue
                seconds, own = torch.tensor(turns[key]), torch.tensor(turns[ours, "ours"])
                quartiles = torch.quantile(seconds / own, torch.tensor([0.25, 0.5, 0.75]))
                yield {
                    "peer": peer.name,
                    "version": facts[key]["ready"][peer.package],
                    "allocator": allocator,
                    "ours": ours,
                    "peer_ms": 1e3 * median(turns[key]),
                    "ours_ms": 1e3 * median(turns[ours, "ours"]),
                    "ratio": quartiles.tolist(),
                }


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Install, build, take turns: the report that is written as JSON."""
    sizes, steps = SIZES[options.size], STEPS[options.size]
    chosen = [peer for peer in PEERS if not options.only or peer.name in options.only]
    with console.status("") as status, tempfile.TemporaryDirectory() as folder:
        peers, notes = install(chosen, console.print)
        rows = Path(folder, "rows.safetensors")
        shape = Shape("rows", sizes["d"], (sizes["n_dict"],), sizes["batch"], "untied")
        save_file({"rows": torch.cat(shape.batches(BATCHES, torch.device("cpu")))}, rows)
        common = {**sizes, "rows": str(rows), "threads": options.threads}
        with Field(contestants(peers, sizes), common, Path(folder)) as field:
            field.get_ready(status.update)
            turns = field.take_turns(steps, options.rounds, status.update)
    return {
        "about": about(options),
        "sizes": sizes,
        "pace": {"steps": steps, "rounds": options.rounds, "batches": BATCHES},
        "active": {k[0]: fact["active"] for k, fact in field.facts.items() if k[0] in OURS},
        "versions": {peer.name: _versions(peer, field.facts) for peer, _ in peers},
        "ratios": list(ratios(peers, turns, field.facts)),
        "turns": [{"name": k[0], "allocator": k[1], "seconds": s} for k, s in turns.items()],
        "notes": notes + field.notes,
    }


def _versions(peer: Peer, facts: dict[Key, dict[str, Any]]) -> dict[str, str]:
    return next((fact["ready"] for key, fact in facts.items() if key[0] == peer.name), {})


def about(options: argparse.Namespace) -> dict[str, Any]:
    """As on the page of throughput, with this command."""
    command = " ".join(["python benchmarks/peers.py", *options.command])
    return {**throughput.about(options), "command": command}


def parse(arguments: list[str]) -> argparse.Namespace:
    """What to measure, and where to write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [peer.name for peer in PEERS]
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", action="append", choices=names, help="this peer; repeatable")
    parser.add_argument("--threads", type=int, default=throughput._cores(), help="of every process")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder to write into")
    parser.add_argument(
        "--tiny",
        dest="size",
        action="store_const",
        const="tiny",
        default="large",
        help="small sizes: to see that it works",
    )
    options = parser.parse_args(arguments)
    options.command = [word for word in arguments if word not in ("--out", str(options.out))]
    options.device = "cpu"
    return options


def main(arguments: list[str]) -> None:
    """Measure, show, write."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    compared.write(measure(options, console), options.out, console)


if __name__ == "__main__":
    main(sys.argv[1:])
