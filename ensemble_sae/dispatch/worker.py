"""The worker loop: one process, one device, the members that the plan gave it."""

from __future__ import annotations

import resource
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.data.feed import Batches, ChunkFeed, row_order
from ensemble_sae.data.joined import open_rows
from ensemble_sae.data.sample import sample_rows
from ensemble_sae.dispatch import child
from ensemble_sae.dispatch import messages as m
from ensemble_sae.dispatch.schedule import Item, Round
from ensemble_sae.dispatch.trainee import Trainee
from ensemble_sae.errors import UserError
from ensemble_sae.run.checkpoint import Checkpoint, Position

HEARTBEAT_S = 1.0


def main(pipe: Connection, stop: Any, spec: m.WorkerSpec) -> None:
    """Entry of the spawned process: obey messages until `Stop` or until the dispatcher is gone.

    Args:
        stop: a shared byte; when it is not 0, training pauses after the current step.
    """
    child.settle()
    torch.set_num_threads(spec.device.threads)
    try:
        Worker(pipe, stop, spec).run()
    except BaseException as error:  # everything must reach the one who reads messages
        _report(pipe, error)
        sys.exit(1)


class Stopped(Exception):
    """The stop byte was set during an evaluation."""


class Worker:
    """Holds a device's trainees and feeds; every message has one method."""

    def __init__(self, pipe: Connection, stop: Any, spec: m.WorkerSpec) -> None:
        self.pipe, self.stop, self.spec = pipe, stop, spec
        self.device = spec.device.torch
        hooks = dict.fromkeys(task.group.hook for task in spec.tasks)
        self.feeds = {h: ChunkFeed(open_rows(spec.sources[h].stores), self.device) for h in hooks}
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
        store, seed = self.feeds[task.group.hook].store, self.spec.train.seed

        def sample(count: int) -> Tensor:
            return source.units.enter(sample_rows(store, count, seed))

        return Trainee(task, self.spec.train, source, self.device, checkpoint, sample)

    def _train(self, round: Round, then: Round | None) -> m.RoundDone | m.Paused:
        """Train on every hook's chunk of a round, or pause where the stop byte says so."""
        began, stalled = time.perf_counter(), self._stalled()
        for hook, item in round.items.items():
            if self.stop.value or not self._train_chunk(hook, item, round.number, then):
                return m.Paused()
        rows: list[dict[str, Any]] = []
        for trainee in self.trainees:
            rows += trainee.finish_round(round.number, round.items.get(trainee.hook))
        self._beat(rows_now=True)
        frozen = {k: v for trainee in self.trainees for k, v in trainee.frozen().items()}
        busy = time.perf_counter() - began
        return m.RoundDone(round.number, rows, frozen, busy, self._stalled() - stalled)

    def _train_chunk(self, hook: str, item: Item, number: int, then: Round | None) -> bool:
        """Train the trainees of a hook that are not past this chunk; False if told to stop."""
        behind = [t for t in self._of(hook) if t.position < Position(number + 1)]
        if not behind:
            return True
        rows = self.feeds[hook].take(item.chunk)
        if then is not None and hook in then.items:
            self.feeds[hook].prefetch(then.items[hook].chunk)
        order = row_order(rows.shape[0], self.spec.train.seed, item.epoch, item.chunk)
        batches = self._batches(hook, rows, order)
        wanted = min(len(batches), -(-self.spec.train.resample_rows // len(batches[0])))

        def around() -> list[Tensor]:
            return [batches[i] for i in range(wanted)]

        first = min(max(t.position, Position(number)) for t in behind).batch
        for index in range(first, len(batches)):
            if self.stop.value:
                return False
            batch = batches[index]
            for trainee in behind:
                if trainee.step(batch, Position(number, index), around):
                    self._sae_rows += len(batch) * len(trainee.ids)
            self._rows += len(batch)
            self._beat()
        return True

    def _evaluate(self, folder: Path) -> m.Evaluated | m.Paused:
        rows: list[dict[str, Any]] = []
        try:
            for hook, feed in self.feeds.items():
                chunks = [chunk.index for chunk in feed.store.refresh().chunks(held_out=True)]
                for trainee in self._of(hook):
                    rows += trainee.evaluate(self._held_out(hook, chunks), folder)
        except Stopped:
            return m.Paused()
        return m.Evaluated(rows, self._peak_bytes())

    def _held_out(self, hook: str, chunks: list[int]) -> Any:
        """All held-out rows of a hook, in order, the last batch of a chunk as short as it is."""
        for chunk in chunks:
            rows = self.feeds[hook].take(chunk)
            for part in rows.split(self.spec.train.batch_size):
                if self.stop.value:
                    raise Stopped
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
        means = {} if rows_now else {t.task.name: t.means() for t in self.trainees}
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


def _report(pipe: Connection, error: BaseException) -> None:
    last_line = traceback.format_exception_only(error)[-1].strip()
    own = error if isinstance(error, UserError) else None
    with suppress(OSError):  # nobody listens any more
        pipe.send(m.Failed(own, last_line, traceback.format_exc()))
