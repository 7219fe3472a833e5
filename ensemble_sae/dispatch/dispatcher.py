"""The dispatcher: sends rounds to the workers, gathers what they say, keeps the run on disk.

Every worker goes through the same script of commands (train a round, save, evaluate) at its own
pace, at most `AHEAD` commands ahead of its answers. A worker that dies is started again from the
last complete checkpoint and goes through the script from there; the others do not wait for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ensemble_sae.dispatch import messages as m
from ensemble_sae.dispatch.launcher import WorkerProcess
from ensemble_sae.dispatch.ledger import Ledger
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.dispatch.schedule import Round
from ensemble_sae.errors import UserError, WorkerFailed
from ensemble_sae.run import Checkpoint, Checkpoints, Part

AHEAD = 2  # commands a worker may have in hand: one it works on, one to prefetch for
DEATHS = 3  # of one worker without a checkpoint between them, before the run stops
POLL_S = 0.2
POLL_MORE_S = 0.5  # between looks for chunks that a harvest has added
FINAL = -1  # the place "in the script" of the save that an interruption asks for


@dataclass(frozen=True)
class SavePoint:
    """The place in the script where every worker saves."""


@dataclass(frozen=True)
class EvaluationPoint:
    """The place in the script where every worker evaluates."""


Command = Round | SavePoint | EvaluationPoint


@dataclass
class Hand:
    """One worker as the dispatcher sees it."""

    spec: m.WorkerSpec
    process: WorkerProcess
    cursor: int  # the next command of the script
    waiting: deque[int] = field(default_factory=deque)  # sent, not answered
    deaths: int = 0


@dataclass
class Saving:
    """A checkpoint in the making: its folder, and the parts of the workers that have saved."""

    folder: Path
    parts: dict[int, tuple[Part, ...]] = field(default_factory=dict)


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint was written first."""

    def __init__(self, signal: int, folder: Path) -> None:
        super().__init__(signal)
        self.signal, self.folder = signal, folder


class Dispatcher:
    """Drives one run from a checkpoint (or the start) to the end of its script.

    Args:
        specs: one per worker.
        checkpoints: where to save; notes of the ledger go with every checkpoint.
        keep, every: checkpoints to keep; rounds between them.
        features: folder for the features' statistics.
        more: returns all rounds known so far, and whether there will be no others.
    """

    def __init__(
        self,
        specs: list[m.WorkerSpec],
        *,
        checkpoints: Checkpoints,
        keep: int,
        every: int,
        features: Path,
        ledger: Ledger,
        observer: Observer,
        more: Callable[[], tuple[list[Round], bool]],
    ) -> None:
        self.checkpoints, self.keep, self.every = checkpoints, keep, every
        self.features, self.ledger, self.observer, self.more = features, ledger, observer, more
        self.script: list[Command] = []
        self._complete = False
        self._ask_at = 0.0
        self._first = 0  # where in the script the work behind `_last` begins
        self._last: Checkpoint | None = None
        self._saving: dict[int, Saving] = {}  # by the place in the script
        self._evaluated: dict[int, m.Evaluated] = {}
        self._specs = specs
        self.hands: list[Hand] = []
        self.signal = 0

    def interrupt(self, signal: int) -> None:
        """Ask for an end (from a signal handler): pause, save, raise `Interrupted` from `run`."""
        self.signal = signal
        for hand in self.hands:
            hand.process.pause()

    def run(self, resume: Checkpoint | None) -> list[dict[str, Any]]:
        """Train to the end and return one row of held-out metrics per member.

        Raises:
            Interrupted: after `interrupt`, when everything is saved.
            UserError: a worker met a problem that starting again cannot mend.
            WorkerFailed: a worker died too often.
        """
        self._last = resume
        self._extend()
        self._first = self._index_of_round(resume.position.round if resume else 0)
        patience_s = 0.0
        try:
            for spec in self._specs:
                self.hands.append(Hand(spec, WorkerProcess(spec), self._first))
            if self.signal:  # it came while the workers were starting
                self.interrupt(self.signal)
            while not self._finished():
                self._extend()
                self._send()
                self._listen()
            patience_s = 5.0
        except Interrupted:
            patience_s = 5.0
            raise
        finally:
            for hand in self.hands:
                hand.process.tell(m.Stop())
            for hand in self.hands:
                hand.process.end(patience_s)
        rows = [row for evaluated in self._evaluated.values() for row in evaluated.rows]
        return sorted(rows, key=lambda row: row["id"])

    @property
    def peak_bytes(self) -> dict[str, int]:
        """Peak memory by device, as the workers measured it at the end."""
        return {
            self.hands[i].spec.device.name: e.peak_bytes for i, e in sorted(self._evaluated.items())
        }

    def _extend(self) -> None:
        """Add the rounds that have become known to the script."""
        if self._complete or self.signal or time.monotonic() < self._ask_at:
            return
        rounds, self._complete = self.more()
        self._ask_at = time.monotonic() + POLL_MORE_S
        for round in rounds[sum(isinstance(c, Round) for c in self.script) :]:
            self.script.append(round)
            if (round.number + 1) % self.every == 0:
                self.script.append(SavePoint())
        if self._complete:
            if not self.script or not isinstance(self.script[-1], SavePoint):
                self.script.append(SavePoint())
            self.script.append(EvaluationPoint())

    def _index_of_round(self, number: int) -> int:
        """Where in the script the work from this round on begins."""
        for index, command in enumerate(self.script):
            if isinstance(command, Round) and command.number >= number:
                return index
        return len(self.script) - 1 if self._complete else len(self.script)

    def _finished(self) -> bool:
        return len(self._evaluated) == len(self._specs)

    def _send(self) -> None:
        for index, hand in enumerate(self.hands):
            while (cursor := self._next(index, hand)) is not None:
                if not hand.process.tell(self._message(cursor, index)):
                    break  # it has died: _listen sees that too, and starts it again
                hand.waiting.append(cursor)
                hand.cursor = max(hand.cursor, cursor + 1)

    def _next(self, index: int, hand: Hand) -> int | None:
        """The place in the script of what this worker can be told now."""
        if not self.signal:
            free = len(hand.waiting) < AHEAD and hand.cursor < len(self.script)
            return hand.cursor if free else None
        saving = self._saving.get(FINAL)
        busy = hand.waiting or (saving is not None and index in saving.parts)
        return None if busy else FINAL

    def _message(self, cursor: int, worker: int) -> Any:
        command = self.script[cursor] if cursor != FINAL else SavePoint()
        if isinstance(command, Round):
            ahead = (c for c in self.script[cursor + 1 : cursor + 3] if isinstance(c, Round))
            return m.TrainRound(command, next(ahead, None))
        if isinstance(command, SavePoint):
            if cursor not in self._saving:
                self._saving[cursor] = Saving(self.checkpoints.begin(cursor))
            return m.Save(str(self._saving[cursor].folder))
        self.observer.evaluating()
        self.features.mkdir(exist_ok=True)
        return m.Evaluate(str(self.features))

    def _listen(self) -> None:
        # A worker that has evaluated is done, and may die, unless it must save once more.
        there = [h for i, h in enumerate(self.hands) if self.signal or i not in self._evaluated]
        ready = wait([w for hand in there for w in hand.process.waits], timeout=POLL_S)
        for index, hand in enumerate(self.hands):
            pipe, sentinel = hand.process.waits
            if pipe not in ready and sentinel not in ready:
                continue
            for message in hand.process.heard():  # a dead worker's last words count
                self._hear(index, hand, message)
            if hand.process.gone or sentinel in ready:
                self._restart(index, hand)

    def _hear(self, index: int, hand: Hand, message: Any) -> None:
        match message:
            case m.Ready():
                return
            case m.Progress(rows, sae_rows, means):
                self.observer.progress(rows, sae_rows, means)
                return
            case m.Failed():
                raise self._failed(hand, message)
        cursor = hand.waiting.popleft()
        match message:
            case m.RoundDone():
                self.ledger.round_done(index, message)
            case m.Saved(parts):
                self._saved(cursor, index, parts)
            case m.Evaluated():
                self._evaluated[index] = message

    def _saved(self, cursor: int, index: int, parts: tuple[Part, ...]) -> None:
        saving = self._saving[cursor]
        saving.parts[index] = parts
        if len(saving.parts) < len(self.hands):
            return
        del self._saving[cursor]
        together = [part for some in saving.parts.values() for part in some]
        self._last = self.checkpoints.commit(saving.folder, together, self.ledger.notes(together))
        self.checkpoints.prune(self.keep)
        self.observer.saved(self._last)
        if cursor == FINAL:
            raise Interrupted(self.signal, self._run_folder)
        self._first = cursor + 1
        for hand in self.hands:
            hand.deaths = 0

    def _restart(self, index: int, hand: Hand) -> None:
        """Start a worker that died again, from the last complete checkpoint.

        That checkpoint cannot be pruned meanwhile: a newer one needs this worker's part, and
        what it saved before it died does not count, since it will write it again.
        """
        hand.process.end(patience_s=1.0)
        code = hand.process.process.exitcode
        hand.deaths += 1
        name = hand.spec.device.name
        if hand.deaths >= DEATHS:
            raise WorkerFailed(
                f"The worker on {name} died {DEATHS} times.",
                found=f"exit code {code}",
                next_step=self._how_to_resume,
            )
        self.observer.worker_died(name, f"exit code {code}", restarting=True)
        for saving in self._saving.values():
            saving.parts.pop(index, None)
        self._evaluated.pop(index, None)
        checkpoint = str(self._last.folder) if self._last else None
        hand.spec = replace(hand.spec, checkpoint=checkpoint)
        hand.waiting.clear()
        hand.cursor = self._first
        hand.process = WorkerProcess(hand.spec)
        if self.signal:
            hand.process.pause()

    def _failed(self, hand: Hand, failure: m.Failed) -> UserError:
        if failure.error is not None:
            return failure.error
        return WorkerFailed(
            f"The worker on {hand.spec.device.name} failed: {failure.what}",
            found=failure.trace,
            next_step=self._how_to_resume,
        )

    @property
    def _run_folder(self) -> Path:
        return self.checkpoints.folder.parent

    @property
    def _how_to_resume(self) -> str:
        return f"the same command with --run {self._run_folder} --resume goes on"
