"""The way of the rows to the step, and what telling about the steps costs.

    python benchmarks/data_path.py

* Reading: chunks of a store that the page cache has forgotten, as a feed fetches them in its
  first pass (with checksums) and in later ones, against plain reading of the same files.
* Making: synthetic rows that are made when they are read, against training on them: the members
  of `toy_96 --quick` and of toy_96 up to eight features per value, at a density of 4%.
* Telling: what is noted at each step for the log, and read once a second, as a share of the time.

Ratios within interleaved rounds; shares of the same steps. Writes data_path.md and .json into
benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contestants import Ensemble, Shape
from torch import Tensor

from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.feed import ChunkFeed
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.synthetic import SyntheticStore
from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.files import write_json
from ensemble_sae.train.tally import Tally

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
D, CHUNKS = 512, 4
SHAPES = (
    (Shape("small", 128, (256,), 256, "untied"), 32),
    (Shape("large", 512, (2048,), 1024, "untied"), 8),
)
MADE = (  # the sizes of one data set's members, six penalties each
    ("toy_small", Shape("quick", 32, (16, 32, 64, 128, 256), 512, "tied", 0.04), 30),
    ("toy_medium", Shape("toy_96", 256, (128, 256, 512, 1024, 2048), 1024, "tied", 0.04), 30),
)
BUFFER = 8 * 2**20


class Timed(Tally):
    """Knows how long taking notes took."""

    seconds = 0.0

    def add(self, start: int, stop: int, values: dict[str, Tensor], alive: Tensor | None) -> None:
        """As always."""
        began = time.perf_counter()
        super().add(start, stop, values, alive)
        self.seconds += time.perf_counter() - began


def reading(rounds: int, chunk_rows: int) -> list[dict[str, Any]]:
    """MB/s of plain reading, and a feed's share of it, chunks being out of the page cache."""
    with tempfile.TemporaryDirectory(dir=".") as folder:  # the medium that data is on, not /tmp's
        values = torch.randn(chunk_rows * CHUNKS, D)
        store = ChunkStore.write(folder, values, chunk_rows=chunk_rows, held_out=0, dtype="float16")
        files = [Path(folder) / chunk.file for chunk in store.chunks()]
        size = sum(path.stat().st_size for path in files)
        feed = ChunkFeed(store, CPU)
        ways: dict[str, Callable[[], None]] = {
            "plain reading": lambda: _read(files),
            "first pass, with checksums": lambda: _fetch(ChunkFeed(store, CPU)),
            "later passes": lambda: _fetch(feed),
        }
        _fetch(feed)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                for path in files:
                    _forget(path)
                began = time.perf_counter()
                way()
                rates[name].append(size / (time.perf_counter() - began) / 1e6)
    plain = rates["plain reading"]
    return [
        {
            "what": name,
            "mb_per_s": statistics.median(found),
            "of_plain": statistics.median(a / b for a, b in zip(found, plain, strict=True)),
        }
        for name, found in rates.items()
    ]


def making(rounds: int) -> list[dict[str, Any]]:
    """Time of one thread to make rows and to train a data set's members on them, per row."""
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for sweep, shape, members in MADE:
        store = {h: SyntheticStore.of(_recipe(sweep), h) for h in ("uncorrelated", "correlated")}
        trainer, batch = Ensemble(shape, members, CPU, "auto"), shape.batches(1, CPU)[0]
        for hook, rows in store.items():
            chunk = rows.chunks()[0]
            shares, seconds = [], []
            for turn in range(rounds + 1):
                made = _seconds(partial(rows.activations, chunk.index), 1) / chunk.rows
                trained = _seconds(partial(trainer.step, batch), 3) / shape.batch
                if turn:
                    seconds.append(made)
                    shares.append(made / (made + trained))
            about = {"recipe": sweep, "rows": hook, "members": members}
            share, median = statistics.median(shares), statistics.median(seconds)
            found.append({**about, "microseconds": 1e6 * median, "share": share})
    torch.set_num_threads(threads)
    return found


def _recipe(name: str) -> SyntheticRecipe:
    recipe = load_recipe(name)
    assert isinstance(recipe, SyntheticRecipe)
    return recipe


def telling(rounds: int) -> list[dict[str, Any]]:
    """The share of the time that notes about steps take."""
    found = []
    for shape, members in SHAPES:
        trainer, batch = Ensemble(shape, members, CPU, "dense"), shape.batches(1, CPU)[0]
        (ensemble,) = trainer.ensembles
        trainer.step(batch)
        ensemble.tally = tally = Timed(members, CPU)
        steps = max(2, round(0.3 / _seconds(partial(trainer.step, batch), 2)))
        shares = []
        for _ in range(rounds):
            tally.seconds, before = 0.0, time.perf_counter()
            _seconds(partial(trainer.step, batch), steps)
            shares.append(tally.seconds / (time.perf_counter() - before))
        once_a_second = _seconds(tally.means, 10)
        share = statistics.median(shares) + once_a_second
        found.append({"shape": shape.name, "members": members, "share": share})
    return found


def _read(files: list[Path]) -> None:
    buffer = bytearray(BUFFER)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _fetch(feed: ChunkFeed) -> None:
    for chunk in feed.store.chunks():
        feed.take(chunk.index)


def _forget(path: Path) -> None:
    """Let the page cache forget a file."""
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(number)


def _seconds(step: Callable[[], Any], steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


def page(report: dict[str, Any]) -> str:
    """data_path.md."""
    about, read, told = report["about"], report["reading"], report["telling"]
    lines = ["| reading | MB/s | of plain reading |", "|---|--:|--:|"]
    lines += [f"| {r['what']} | {r['mb_per_s']:,.0f} | {r['of_plain']:.0%} |" for r in read]
    lines += ["", "| making | members | microseconds per row | of the time |", "|---|--:|--:|--:|"]
    lines += [
        f"| `{m['recipe']}`, {m['rows']} | {m['members']} | {m['microseconds']:.1f} "
        f"| {m['share']:.1%} |"
        for m in report["making"]
    ]
    lines += ["", "| telling | of the time |", "|---|--:|"]
    lines += [f"| {t['members']} members, {t['shape']} | {t['share']:.2%} |" for t in told]
    return (
        f"# The way of the rows\n\n{about['hardware']}; torch {about['torch']}; {about['date']}."
        " Made by `python benchmarks/data_path.py`.\n\n" + "\n".join(lines) + "\n\n"
        "*Reading*: a store of float16 rows, forgotten by the page cache before every turn. In its"
        " first\npass a feed compares SHA-256 checksums. *Making*: synthetic rows, made when"
        " they\nare read, as a share of making them and training 30 members on them, by one thread."
        "\n*Telling*: sums of what a step reports, read once a second.\n"
    )


def main(arguments: list[str]) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chunk-rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    about = {"hardware": hardware(), "torch": torch.__version__}
    about["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    report = {
        "about": about,
        "reading": reading(options.rounds, options.chunk_rows),
        "making": making(options.rounds // 3),
        "telling": telling(options.rounds),
    }
    write_json(options.out / "data_path.json", report)
    text = page(report)
    (options.out / "data_path.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
