"""A small sweep on two stores of different lengths, and what its runs are compared by."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import traps

import ensemble_sae
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.engine.run_sweep import run_sweep
from ensemble_sae.randomness import generator
from ensemble_sae.run import Run
from ensemble_sae.sweep import Sweep, load_sweep

HERE = Path(traps.__file__).parent

TOML = """
name = "small"
[activations]
store = "{store}"
normalise = "standard"
[train]
batch_size = 32
epochs = 2
checkpoint_every = 2
keep_checkpoints = 1
lr_warmup = 10
[[grid]]
signature = ["traps:Trapped", "tied", "untied"]
hook = "a"
n_dict = 24
l1 = [1e-3, 3e-3, 1e-2]
[[grid]]
signature = "untied"
hook = "b"
n_dict = [12, 80]
l1 = [1e-3, 1e-2]
"""
SPLIT = {3, 4, 5}  # the members of the group that is cut in two on two workers


def write_stores(folder: Path) -> None:
    """Two hooks: 5 chunks of 8 values, 3 chunks of 6 values; 512 rows each, some held out."""
    for hook, d, chunks in (("a", 8, 5), ("b", 6, 3)):
        draw = generator(0, "small", hook)
        rows = torch.randn(640 * chunks, d, generator=draw) + 1.0
        store = ensemble_sae.ChunkStore.write(folder / hook, rows, chunk_rows=512, held_out=0.2)
        assert len(store.chunks()) == chunks
        assert store.rows(held_out=True) > 0


def write_sweep(folder: Path) -> Path:
    """The sweep's file beside its stores."""
    path = folder / "small.toml"
    path.write_text(TOML.format(store=folder / "stores"), encoding="utf-8")
    return path


def train(sweep: Path | Sweep, run: Path, devices: str = "cpu:1", **options: Any) -> Run:
    """`run_sweep` in this process, one thread per worker."""
    if isinstance(sweep, Path):
        sweep, _ = load_sweep(sweep)
    return run_sweep(sweep, run=run, devices=devices, threads=1, **options)


def command(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
    """`big_sweep` in a process group of its own."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "ensemble_sae.big_sweep", *map(str, words), "--wandb", "off"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **environment},
        start_new_session=True,
    )


def orphans(group: int, patience_s: float = 15.0) -> list[str]:
    """Processes of a process group that are still there after a while (Linux)."""
    ends = time.monotonic() + patience_s
    while True:
        there = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(session) == group and state != "Z":
                    there.append((folder / "cmdline").read_text().replace("\0", " "))
            except (OSError, ValueError):
                continue
        if not there or time.monotonic() > ends:
            return there
        time.sleep(0.1)


def states(run: Run) -> dict[int, dict[str, torch.Tensor]]:
    """Everything that the last checkpoint says of every member."""
    checkpoint = run.checkpoints[-1]
    return {int(member): checkpoint.member(int(member)) for member in run.members.index}


def assert_same_bits(found: Run, expected: Run) -> None:
    """Parameters, optimiser state, metrics over time and tables are equal to the last bit."""
    mine, theirs = states(found), states(expected)
    assert mine.keys() == theirs.keys()
    for member, tensors in theirs.items():
        assert mine[member].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(mine[member][name], tensor), (member, name)
    log = "metrics.jsonl"
    assert (found.path / log).read_text() == (expected.path / log).read_text()
    assert (found.path / "members.json").read_text() == (expected.path / "members.json").read_text()
    pandas = pytest.importorskip("pandas")
    pandas.testing.assert_frame_equal(found.members, expected.members, check_exact=True)


def assert_close(found: Run, expected: Run, but: str = "nothing") -> None:
    """The same members, to rounding; without tensors whose names begin with `but`."""
    mine, theirs = states(found), states(expected)
    for member, tensors in theirs.items():
        for name, tensor in tensors.items():
            if name.startswith(but):
                continue
            torch.testing.assert_close(
                mine[member][name], tensor, rtol=2e-4, atol=2e-5, msg=f"{member}: {name}"
            )
    columns = ["round", "member", "epoch", "chunk", "step"]
    assert found.metrics[columns].equals(expected.metrics[columns])
    for name in ("loss", "mse", "fvu", "l0"):
        torch.testing.assert_close(
            torch.tensor(found.metrics[name].to_numpy()),
            torch.tensor(expected.metrics[name].to_numpy()),
            rtol=1e-3,
            atol=1e-4,
            equal_nan=True,  # of rounds in which a member no longer moved
        )


class Watch(Observer):
    """Remembers what happened, and does something at an event."""

    def __init__(self, **at: Any) -> None:
        self.at = at
        self.seen: list[tuple[str, Any]] = []

    def __getattribute__(self, name: str) -> Any:
        event = object.__getattribute__(self, name)
        if name not in Observer.__dict__ or name.startswith("_"):
            return event

        def told(*words: Any, **more: Any) -> None:
            self.seen.append((name, words))
            if name in self.at:
                self.at[name](*words, **more)

        return told

    def events(self, name: str) -> list[Any]:
        """What was said at every event of this name."""
        return [words for event, words in self.seen if event == name]
