"""The worker loop: one process, one device, the members that the plan gave it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.data.feed import Batches, ChunkFeed, row_order
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.dispatch import messages as m
from ensemble_sae.dispatch.schedule import Item, Round
from ensemble_sae.dispatch.trainee import Trainee
from ensemble_sae.run.checkpoint import Checkpoint, Position

HEARTBEAT_S = 1.0


def main(pipe: Connection, stop: Any, spec: m.WorkerSpec) -> None:
    """Entry of the spawned process: obey messages until `Stop` or until the dispatcher is gone.

    Args:
        stop: a shared byte; when it is not 0, training pauses after the current step.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the dispatcher decides: see Paused
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(spec.device.threads)
    try:
        Worker(pipe, stop, spec).run()
    except (BrokenPipeError, EOFError, ConnectionResetError):
        pass  # the dispatcher is gone
    except BaseException as error:  # everything must reach the one who reads messages
        _report(pipe, error)
        sys.exit(1)


class Worker:
    """Holds a device's trainees and feeds; every message has one method."""

    def __init__(self, pipe: Connection, stop: Any, spec: m.WorkerSpec) -> None:
        self.pipe, self.stop, self.spec = pipe, stop, spec
        self.device = spec.device.torch
        hooks = dict.fromkeys(task.group.hook for task in spec.tasks)
        self.feeds = {
            h: ChunkFeed(ChunkStore.open(spec.sources[h].store), self.device) for h in hooks
        }
        checkpoint = Checkpoint.open(Path(spec.checkpoint)) if spec.checkpoint else None
        self.trainees = [self._trainee(task, checkpoint) for task in spec.tasks]
        self._rows = self._sae_rows = 0
        self._last_beat = time.monotonic()

    def run(self) -> None:
        """Obey messages until `Stop`."""
        self.pipe.send(m.Ready())
        while True:
            message = self.pipe.recv()
            match message:
                case m.TrainRound(round, then):
                    self.pipe.send(self._train(round, then))
                case m.Save(folder):
                    parts = tuple(trainee.save(Path(folder)) for trainee in self.trainees)
                    self.pipe.send(m.Saved(parts))
                case m.Evaluate(folder):
                    self.pipe.send(self._evaluate(Path(folder)))
                case m.Stop():
                    return

    def _trainee(self, task: Any, checkpoint: Checkpoint | None) -> Trainee:
        source = self.spec.sources[task.group.hook]
        meta = self.feeds[task.group.hook].store.meta
        variance = sum(meta.variance) / len(meta.variance) / source.units.scale**2
        return Trainee(task, self.spec.train, source, variance, self.device, checkpoint)

    def _train(self, round: Round, then: Round | None) -> m.RoundDone | m.Paused:
        """Train on every hook's chunk of a round, or pause where the stop byte says so."""
        began, stalled = time.perf_counter(), self._stalled()
        rows: list[dict[str, Any]] = []
        mine = [(hook, item) for hook, item in round.items.items() if hook in self.feeds]
        for hook, item in mine:
            paused_at = self._train_chunk(hook, item, round.number, then)
            if paused_at is not None:
                return m.Paused(paused_at)
        for hook, item in mine:
            for trainee in self._of(hook):
                rows += trainee.finish_round(round.number, item)
        self._beat(rows_now=True)
        frozen = {k: v for trainee in self.trainees for k, v in trainee.frozen().items()}
        busy = time.perf_counter() - began
        return m.RoundDone(round.number, rows, frozen, busy, self._stalled() - stalled)

    def _train_chunk(
        self, hook: str, item: Item, number: int, then: Round | None
    ) -> Position | None:
        """Train all trainees of a hook on a chunk; the position where it paused, if it did."""
        trainees = self._of(hook)
        if all(trainee.position >= Position(number + 1) for trainee in trainees):
            return None
        rows = self.feeds[hook].take(item.chunk)
        if then is not None and hook in then.items:
            self.feeds[hook].prefetch(then.items[hook].chunk)
        order = row_order(rows.shape[0], self.spec.train.seed, item.epoch, item.chunk)
        batches = self._batches(hook, rows, order)
        first = min(t.position.batch if t.position.round == number else 0 for t in trainees)
        for index in range(first, len(batches)):
            here = Position(number, index)
            if self.stop.value:
                return here
            batch = batches[index]
            for trainee in trainees:
                if trainee.step(batch, here):
                    self._sae_rows += len(batch) * len(trainee.ids)
            self._rows += len(batch)
            self._beat()
        return None

    def _evaluate(self, folder: Path) -> m.Evaluated:
        rows: list[dict[str, Any]] = []
        for hook, feed in self.feeds.items():
            chunks = [chunk.index for chunk in feed.store.refresh().chunks(held_out=True)]
            for trainee in self._of(hook):
                rows += trainee.evaluate(self._held_out(hook, chunks), folder)
        return m.Evaluated(rows, self._peak_bytes())

    def _held_out(self, hook: str, chunks: list[int]) -> Any:
        """All held-out rows of a hook, in order, the last batch of a chunk as short as it is."""
        for chunk in chunks:
            rows = self.feeds[hook].take(chunk)
            for part in rows.split(self.spec.train.batch_size):
                yield self.spec.sources[hook].units.enter(part)

    def _batches(self, hook: str, rows: Tensor, order: Tensor) -> Batches:
        return Batches(rows, order, self.spec.train.batch_size, self.spec.sources[hook].units)

    def _of(self, hook: str) -> list[Trainee]:
        return [trainee for trainee in self.trainees if trainee.hook == hook]

    def _beat(self, rows_now: bool = False) -> None:
        """Tell about once a second how far this is; between beats nothing waits for the device."""
        now = time.monotonic()
        if not rows_now and now - self._last_beat < HEARTBEAT_S:
            return
        means = {} if rows_now else {t.task.group.name: t.means() for t in self.trainees}
        self.pipe.send(m.Progress(self._rows, self._sae_rows, means))
        self._rows = self._sae_rows = 0
        self._last_beat = now

    def _stalled(self) -> float:
        return sum(feed.stall_s for feed in self.feeds.values())

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _die_with_parent() -> None:
    """End this process when the dispatcher's ends, however that happens."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _report(pipe: Connection, error: BaseException) -> None:
    try:
        pipe.send(m.Failed(error, traceback.format_exc()))
    except Exception:  # the error itself cannot be sent, or nobody listens: at least its text
        with contextlib.suppress(OSError):
            pipe.send(m.Failed(RuntimeError(repr(error)), traceback.format_exc()))
