"""A runner's side of the comparison: batches for a training loop, when the driver asks for a turn.

A library's own loop asks for batch after batch. `Turns` gives it some, and between them it waits:
a line `turn N` on standard input stands for the next N batches, and when the loop comes back for
the batch after them, all N steps are done and a line `{"seconds": ...}` is written. Before the
first turn it writes `{"ready": ...}` with versions; when the input ends, so does the process.

What a step takes outside the library is one `next` of a generator.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ENDLESS = 10**9  # steps that a loop is told to take: the driver ends it


class Turns:
    """The batches of the job whose file is this process's first argument.

    Args:
        packages: their versions are reported, and torch's.
    """

    def __init__(self, *packages: str) -> None:
        self.job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        torch.set_num_threads(self.job["threads"])
        self.rows: Tensor = load_file(self.job["rows"])["rows"]
        self.batches = self.rows.split(self.job["batch"])
        self.facts: dict[str, Any] = {}
        self._packages = (*packages, "torch")

    def __iter__(self) -> Iterator[Tensor]:
        for place in self.places():
            yield self.batches[place]

    def places(self) -> Iterator[int]:
        """Which batch comes next, without end."""
        versions = {package: importlib.metadata.version(package) for package in self._packages}
        _answer({"ready": versions, **self.facts})
        while True:
            steps = _asked()
            began = time.perf_counter()
            for step in range(steps):
                yield step % len(self.batches)
            _answer({"seconds": time.perf_counter() - began})


def _asked() -> int:
    """The number of steps of the next turn; leaves the process when there is none."""
    line = sys.stdin.readline()
    if not line:
        raise SystemExit
    word, steps = line.split()
    if word != "turn":
        raise ValueError(f"asked for {line!r}; known: turn N")
    return int(steps)


def _answer(found: dict[str, Any]) -> None:
    sys.__stdout__.write(f"\n{json.dumps(found)}\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]
