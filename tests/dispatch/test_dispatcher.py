"""The dispatcher against workers that die at any message: threads that only count batches."""

from __future__ import annotations

import multiprocessing
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ensemble_sae.dispatch import dispatcher as room
from ensemble_sae.dispatch import messages as m
from ensemble_sae.dispatch.dispatcher import Dispatcher, Interrupted
from ensemble_sae.dispatch.launcher import WorkerProcess
from ensemble_sae.dispatch.ledger import Ledger
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.dispatch.schedule import Item, Round
from ensemble_sae.errors import WorkerFailed
from ensemble_sae.run import Checkpoint, Checkpoints, Position
from ensemble_sae.run.checkpoint import write_part
from ensemble_sae.run.metrics import MetricsLog, read_rows

ROUNDS, BATCHES, WORKERS = 9, 4, 3


class FakeWorker(WorkerProcess):
    """One member; its "parameter" counts the batches. Dies where `fate` says."""

    fate = random.Random(0)
    chance = 0.0

    def __init__(self, spec: Any) -> None:
        self.pipe, self._theirs = multiprocessing.Pipe()
        self._alive, self._life = multiprocessing.Pipe()
        self.process = SimpleNamespace(sentinel=self._alive, exitcode=-9)  # type: ignore[assignment]
        self._stop, self.gone = SimpleNamespace(value=0), False
        self._member, self._position = spec.member, Position()
        if spec.checkpoint:
            self._position = Checkpoint.open(Path(spec.checkpoint)).part_of(spec.member).position
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self, patience_s: float = 5.0) -> None:
        self.pipe.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not isinstance(message := self._theirs.recv(), m.Stop):
                self._may_die()
                answer = self._answer(message)
                self._may_die()
                self._theirs.send(answer)
                self._may_die()
        except (EOFError, OSError):
            pass
        finally:
            self._theirs.close()
            self._life.close()

    def _may_die(self) -> None:
        if self.fate.random() < self.chance:
            raise EOFError

    def _answer(self, message: Any) -> Any:
        if isinstance(message, m.TrainRound):
            return self._train(message.round.number)
        if isinstance(message, m.Save):
            done = BATCHES * self._position.round + self._position.batch
            state = {"params/x": torch.tensor([done]), "step": torch.tensor(done)}
            folder = Path(message.folder)
            return m.Saved((write_part(folder, "g", [self._member], state, self._position),))
        return m.Paused() if self._stop.value else m.Evaluated([{"id": self._member}], 0)

    def _train(self, number: int) -> Any:
        while self._position < Position(number + 1):
            if self._stop.value:
                return m.Paused()
            batch = self._position.batch + 1
            full = batch == BATCHES
            self._position = Position(number + 1) if full else Position(number, batch)
            if full:
                row = {"round": number, "member": self._member, "loss": number * 1.5}
                return m.RoundDone(number, [row], {}, 0.0, 0.0)
        return m.RoundDone(number, [], {}, 0.0, 0.0)


class Interrupt(Observer):
    """Interrupts after some messages that reach the log or the checkpoints."""

    def __init__(self, after: int) -> None:
        self.dispatcher: Dispatcher | None = None
        self._left = after

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0 and self.dispatcher is not None:
            self.dispatcher.interrupt(2)

    def round_done(self, number: int, rows: Any) -> None:
        self._count()

    def saved(self, checkpoint: Checkpoint) -> None:
        checkpoint.verify()
        self._count()

    def worker_died(self, device: str, reason: str, restarting: bool) -> None:
        self._count()


def call(folder: Path, every: int, observer: Interrupt) -> list[dict[str, Any]]:
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoint = checkpoints.latest()
    checkpoints.clean(checkpoint)
    ledger = Ledger(MetricsLog(folder / "log"), WORKERS, {}, observer)
    if checkpoint is not None:
        ledger.restore(checkpoint)
    else:
        MetricsLog(folder / "log").cut(0)
    known = [Round(number, {"a": Item(0, number)}) for number in range(ROUNDS)]
    path = str(checkpoint.folder) if checkpoint else None
    specs: Any = [Spec(index, path) for index in range(WORKERS)]
    dispatcher = observer.dispatcher = Dispatcher(
        specs,
        checkpoints=checkpoints,
        keep=1,
        every=every,
        features=folder / "features",
        ledger=ledger,
        observer=observer,
        more=lambda: (known, True),
    )
    return dispatcher.run(checkpoint)


class Spec(SimpleNamespace):
    def __init__(self, member: int, checkpoint: str | None) -> None:
        device = SimpleNamespace(name=f"fake:{member}")
        super().__init__(member=member, checkpoint=checkpoint, device=device)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WorkerProcess", FakeWorker)
    monkeypatch.setattr(room, "replace", lambda spec, checkpoint: Spec(spec.member, checkpoint))


@pytest.mark.parametrize("seed", range(25))
def test_deaths_and_interruptions_at_random(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(FakeWorker, "fate", random.Random(seed))
    monkeypatch.setattr(FakeWorker, "chance", draw.choice([0.0, 0.005, 0.02]))
    every = draw.randrange(1, 5)
    for _ in range(60):
        try:
            rows = call(tmp_path, every, Interrupt(draw.randrange(1, 12)))
            break
        except (Interrupted, WorkerFailed):
            continue
    assert [row["id"] for row in rows] == [0, 1, 2]
    wanted = [(number, member) for number in range(ROUNDS) for member in range(WORKERS)]
    found = [(row["round"], row["member"]) for row in read_rows(tmp_path / "log")]
    assert found == wanted
    last = Checkpoints(tmp_path / "checkpoints").latest()
    assert last is not None
    assert last.notes == {"rows": [], "frozen": {}}
    assert {part.position for part in last.parts} == {Position(ROUNDS)}
    folders = list((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in folders if path.name.startswith("step-")] == [last.folder.name]
