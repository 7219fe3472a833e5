"""The dispatcher: sends rounds to the workers, gathers what they say, keeps the run on disk.

Every worker goes through the same script of commands (train a round, save, evaluate) at its own
pace, at most `AHEAD` commands ahead of its answers. A worker that dies is started again from the
last complete checkpoint and goes through the script from there; the others do not wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
        self._first = 0
        self._last: Checkpoint | None = None
        self._saving: dict[int, tuple[Path, dict[int, tuple[Part, ...]]]] = {}
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
        try:
            self.hands = [Hand(s, WorkerProcess(s), self._first) for s in self._specs]
            if self.signal:  # it came while the workers were starting
                self.interrupt(self.signal)
            while not self._finished():
                if self.signal and all(not hand.waiting for hand in self.hands):
                    self._save_and_stop()
                self._extend()
                self._send()
                self._listen()
            for hand in self.hands:
                hand.process.pipe.send(m.Stop())
            return sorted(
                (row for e in self._evaluated.values() for row in e.rows), key=lambda r: r["id"]
            )
        finally:
            for hand in self.hands:
                hand.process.end(patience_s=5.0 if self._finished() or self.signal else 0.0)

    @property
    def peak_bytes(self) -> dict[str, int]:
        """Peak memory by device, as the workers measured it at the end."""
        return {
            self.hands[i].spec.device.name: e.peak_bytes for i, e in sorted(self._evaluated.items())
        }

    def _extend(self) -> None:
        """Add the rounds that have become known to the script."""
        if self._complete:
            return
        rounds, self._complete = self.more()
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
        if self.signal:
            return
        for index, hand in enumerate(self.hands):
            while len(hand.waiting) < AHEAD and hand.cursor < len(self.script):
                message = self._message(hand.cursor, index)
                if not self._tell(hand, message):
                    break
                hand.waiting.append(hand.cursor)
                hand.cursor += 1

    def _message(self, cursor: int, worker: int) -> Any:
        command = self.script[cursor]
        if isinstance(command, Round):
            ahead = (c for c in self.script[cursor + 1 : cursor + 3] if isinstance(c, Round))
            return m.TrainRound(command, next(ahead, None))
        if isinstance(command, SavePoint):
            folder, _ = self._saving.setdefault(cursor, (self.checkpoints.begin(cursor), {}))
            return m.Save(str(folder))
        self.observer.evaluating()
        self.features.mkdir(exist_ok=True)
        return m.Evaluate(str(self.features))

    def _tell(self, hand: Hand, message: Any) -> bool:
        try:
            hand.process.pipe.send(message)
            return True
        except (BrokenPipeError, ConnectionResetError, OSError):
            return False  # it has died: _listen sees that too, and starts it again

    def _listen(self) -> None:
        ready = wait([w for hand in self.hands for w in hand.process.waits], timeout=POLL_S)
        for index, hand in enumerate(self.hands):
            pipe, sentinel = hand.process.waits
            if pipe in ready:
                try:
                    while pipe.poll():
                        self._hear(index, hand, pipe.recv())
                except (EOFError, ConnectionResetError, OSError):
                    self._restart(hand)
            elif sentinel in ready:
                self._restart(hand)

    def _hear(self, index: int, hand: Hand, message: Any) -> None:
        match message:
            case m.Ready():
                return
            case m.Progress(rows, sae_rows, means):
                self.observer.progress(rows, sae_rows, means)
                return
            case m.Failed(error, trace):
                self._give_up(hand, error, trace)
        cursor = hand.waiting.popleft()
        match message:
            case m.RoundDone():
                self.ledger.round_done(index, message)
            case m.Paused():
                pass
            case m.Saved(parts):
                self._saved(cursor, index, parts)
            case m.Evaluated():
                self._evaluated[index] = message

    def _saved(self, cursor: int, index: int, parts: tuple[Part, ...]) -> None:
        folder, gathered = self._saving[cursor]
        gathered[index] = parts
        if len(gathered) < len(self.hands):
            return
        del self._saving[cursor]
        self._commit(folder, gathered)
        self._first = cursor + 1
        for hand in self.hands:
            hand.deaths = 0

    def _commit(self, folder: Path, gathered: Mapping[int, tuple[Part, ...]]) -> None:
        parts = [part for some in gathered.values() for part in some]
        self._last = self.checkpoints.commit(folder, parts, self.ledger.notes())
        self.checkpoints.prune(self.keep)
        self.observer.saved(self._last)

    def _restart(self, hand: Hand) -> None:
        """Start a worker that died again, from the last complete checkpoint."""
        hand.process.end(patience_s=1.0)
        code = hand.process.process.exitcode
        hand.deaths += 1
        name = hand.spec.device.name
        if hand.deaths >= DEATHS:
            raise WorkerFailed(
                f"The worker on {name} died {DEATHS} times.",
                found=f"exit code {code}",
                next_step="--resume goes on from the last checkpoint",
            )
        self.observer.worker_died(name, f"exit code {code}", restarting=True)
        checkpoint = str(self._last.folder) if self._last else None
        hand.spec = m.WorkerSpec(
            hand.spec.device, hand.spec.tasks, hand.spec.train, hand.spec.sources, checkpoint
        )
        hand.waiting.clear()
        hand.cursor = self._first
        hand.process = WorkerProcess(hand.spec)
        if self.signal:
            hand.process.pause()

    def _give_up(self, hand: Hand, error: BaseException, trace: str) -> None:
        if isinstance(error, UserError):
            raise error
        raise WorkerFailed(
            f"The worker on {hand.spec.device.name} failed.", found=f"{error!r}\n{trace}"
        )

    def _save_and_stop(self) -> None:
        """All workers have paused: save where they are, end them, raise `Interrupted`."""
        folder = self.checkpoints.begin(len(self.script))
        for hand in self.hands:
            hand.process.pipe.send(m.Save(str(folder)))
        gathered: dict[int, tuple[Part, ...]] = {}
        for index, hand in enumerate(self.hands):
            while index not in gathered:
                message = hand.process.pipe.recv()
                if isinstance(message, m.Saved):
                    gathered[index] = message.parts
                elif isinstance(message, m.Failed):
                    self._give_up(hand, message.error, message.trace)
        self._commit(folder, gathered)
        for hand in self.hands:
            hand.process.pipe.send(m.Stop())
        raise Interrupted(self.signal, self.checkpoints.folder.parent)
