"""A whole sweep: stores, members, plan, training, evaluation, tables."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_sae.config.strict import validate
from ensemble_sae.data.location import data_dir as default_data_dir
from ensemble_sae.dispatch import devices as device_choice
from ensemble_sae.dispatch.dispatcher import Dispatcher, Interrupted
from ensemble_sae.dispatch.ledger import Ledger
from ensemble_sae.dispatch.messages import WorkerSpec
from ensemble_sae.dispatch.observer import Observer, Observers
from ensemble_sae.dispatch.schedule import Round, rounds
from ensemble_sae.engine import results, stores
from ensemble_sae.engine.claim import claimed
from ensemble_sae.engine.discarding import Discard, check_discard, refuse_discarded
from ensemble_sae.engine.display import default_observer
from ensemble_sae.engine.harvesting import Harvesting, in_background, now
from ensemble_sae.engine.prepared import Prepared, default_run_folder, prepare
from ensemble_sae.engine.report_at_end import report_at_end
from ensemble_sae.engine.resume import Beginning, Record, is_finished, same_sweep
from ensemble_sae.engine.signals import Signals
from ensemble_sae.errors import UserError
from ensemble_sae.run import Checkpoint, Checkpoints, Layout, Position, Run
from ensemble_sae.run.metrics import MetricsLog
from ensemble_sae.signatures import name_of, resolve
from ensemble_sae.sweep import Sweep
from ensemble_sae.sweep.schema import Activations


def run_sweep(
    sweep: Sweep | Sequence[Mapping[str, Any]],
    *,
    activations: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    devices: str | None = None,
    gpus: int | None = None,
    threads: int | None = None,
    resume: bool = False,
    stream: bool = False,
    discard: bool = False,
    data_dir: str | Path | None = None,
    report: bool = True,
    observer: Observer | None = None,
    where: str = "run_sweep",
) -> Run:
    """Train every member of a sweep in one pass over the activations.

        run_sweep([{"signature": "tied", "dict_ratio": 4, "l1": 1e-3}],
                  activations={"store": "data/mine"}, run="runs/mine")

    A script that calls this needs `if __name__ == "__main__":`, since workers are spawned; a
    notebook does not.

    Args:
        sweep: a loaded sweep file, or a list of members with the keys of `[[members]]`.
        activations, train: the tables of a sweep file, for a list of members.
        run: the run's folder; default `runs/<name>`, numbered if that is taken.
        devices: "cuda:0,cuda:1" or "cpu:2"; gpus: that many GPUs; default: what is there.
        threads: of each CPU worker; default: the cores divided by the workers.
        resume: go on from the last checkpoint in `run`.
        stream: harvest while training; discard: delete chunks that all have used.
        data_dir: where harvested stores are; default `$ENSEMBLE_SAE_DATA` or `./data`.
        report: write `report/index.html` at the end.
        observer: is told of progress; by default a display in a notebook, elsewhere nobody.

    Raises:
        UserError: something in the sweep, the data or the machine does not fit.
        Interrupted: SIGINT or SIGTERM, when everything is saved.
        KeyboardInterrupt: a second one of them.
    """
    sweep = _as_sweep(sweep, activations, train, where)
    if discard:
        check_discard(sweep)
    watching = observer or default_observer()
    chosen = device_choice.choose(gpus, devices, threads)
    with Signals() as signals, claimed(default_run_folder(sweep), run, resume) as layout:
        if resume:
            same_sweep(layout, sweep)
            if is_finished(layout):
                watching.warning(f"{layout.folder} is finished already: nothing is left to do")
                return _opened(layout)
        folder = default_data_dir(data_dir)
        sources = stores.locate(sweep.activations, folder)
        checkpoint = _latest(layout, watching)
        ready = prepare(sweep, where, sources, chosen, checkpoint)
        beginning = Beginning.read(layout) if resume else None
        streams = beginning.as_written if beginning else stream and sources.recipe is not None
        harvest = in_background if stream and streams else now
        with harvest(sources, folder, watching) as harvesting:
            harvesting.wait_for_first_chunks(ready.sources, ready.hooks)
            training = _Training(ready, layout, harvesting, watching, checkpoint)
            training.begin(beginning, streams, discard)
            training.train(signals, report)
        return _opened(layout)


class _Training:
    """One call of `run_sweep`, once the run's folder is ours and the first chunks are there."""

    def __init__(
        self,
        ready: Prepared,
        layout: Layout,
        harvesting: Harvesting,
        observer: Observer,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.ready, self.layout, self.harvesting = ready, layout, harvesting
        self.observer, self.checkpoint = observer, checkpoint
        self.position = checkpoint.position if checkpoint else Position()
        self.began = time.time()
        self.stores = ready.sources.open(ready.hooks)  # by hook point
        self.rows = stores.rows_of(ready.hooks, self.stores)  # by hook, as members name it
        self.checkpoints = Checkpoints(layout.checkpoints)
        self.record = Record(layout, ready)

    def begin(self, beginning: Beginning | None, as_written: bool, discard: bool) -> None:
        """Check the stores, then write what a run begins with, or heed what it began with."""
        activations, train = self.ready.sweep.activations, self.ready.sweep.train
        stores.check_rows(self.rows, train.batch_size)
        if beginning is not None:
            beginning.check(self.stores)
        self.as_written = as_written
        ahead = [round for round in self._more()[0] if round.number >= self.position.round]
        refuse_discarded(self.stores, ahead, activations.recipe)
        self.beginning = beginning or Beginning.of(self.ready, self.stores, as_written)
        self.record.start(self.beginning, self.stores)
        self.checkpoints.clean(self.checkpoint)
        shutil.rmtree(self.layout.features, ignore_errors=True)  # of an interrupted evaluation
        if discard:
            deletes = Discard(self.stores, self.rows, lambda: self._more()[0], self.checkpoints)
            self.observer = Observers(self.observer, deletes)

    def train(self, signals: Signals, report: bool) -> None:
        """Train, evaluate, write tables and report; keep `run.json` true whatever happens."""
        members = {member.id: member for member in self.ready.members}
        log = MetricsLog(self.layout.metrics)
        ledger = Ledger(log, len(self.ready.plan.devices), members, self.observer)
        if self.checkpoint is not None:
            ledger.restore(self.checkpoint)
        else:
            log.cut(0)
        dispatcher = signals.dispatcher = self._dispatcher(ledger)
        self.observer.opened(self.layout.folder)
        self._announce()
        try:
            evaluated = dispatcher.run(self.checkpoint)
            self._finish(evaluated, ledger, dispatcher)
        except (Interrupted, KeyboardInterrupt):
            self.record.end("interrupted")
            raise
        except BaseException:
            self.record.end("failed")
            raise
        else:
            signals.finished = True
            if report:
                opened = partial(_opened, self.layout)
                report_at_end(opened, self.layout.folder, self.ready.sweep.report, self.observer)
        finally:
            self.observer.ended()

    def _dispatcher(self, ledger: Ledger) -> Dispatcher:
        train, plan, known = self.ready.sweep.train, self.ready.plan, self.beginning
        steps = self._steps()
        sources = {
            hook: replace(known.source(hook, self.stores), steps=steps.get(hook))
            for hook in self.rows
        }
        folder = str(self.checkpoint.folder) if self.checkpoint else None
        specs = [
            WorkerSpec(device, tasks, train, sources, folder)
            for device, tasks in zip(plan.devices, plan.tasks, strict=True)
        ]
        return Dispatcher(
            specs,
            checkpoints=self.checkpoints,
            keep=train.keep_checkpoints,
            every=train.checkpoint_every,
            features=self.layout.features,
            ledger=ledger,
            observer=self.observer,
            more=self._more,
        )

    def _steps(self) -> dict[str, int]:
        """Updates of the whole training by hook; nothing while a harvest goes on."""
        known, complete = self._more()
        total = dict.fromkeys(self.rows, 0)
        for round in known if complete else []:
            for hook, item in round.items.items():
                chunk = self.rows[hook].meta.chunks[item.chunk]
                total[hook] += chunk.rows // self.ready.sweep.train.batch_size
        return total if complete else {}

    def _more(self) -> tuple[list[Round], bool]:
        """All rounds that are known, and whether there will be no others."""
        complete = self.harvesting.done()  # asked before the stores are read
        for rows in self.rows.values():
            rows.refresh()
        chunks = {hook: [c.index for c in rows.chunks()] for hook, rows in self.rows.items()}
        train = self.ready.sweep.train
        if complete:
            return rounds(
                chunks, epochs=train.epochs, seed=train.seed, as_written=self.as_written
            ), True
        together = min(len(indices) for indices in chunks.values())
        first = {hook: indices[:together] for hook, indices in chunks.items()}
        return rounds(first, epochs=1, seed=train.seed, as_written=True), False

    def _announce(self) -> None:
        """Tell the observer how much there is to do, and how much of it was done before."""
        train, plan = self.ready.sweep.train, self.ready.plan
        known, complete = self._more()
        total, done = dict.fromkeys(self.rows, 0), dict.fromkeys(self.rows, 0)
        for round in known:
            for hook, item in round.items.items():
                rows = self.rows[hook].meta.chunks[item.chunk].rows
                rows -= rows % train.batch_size
                total[hook] += rows
                if round.number < self.position.round:
                    done[hook] += rows
                elif round.number == self.position.round:
                    done[hook] += self.position.batch * train.batch_size
        recipe = self.ready.sources.recipe
        if not complete and recipe is not None and recipe.rows is not None:
            expected = int(recipe.rows * (1 - recipe.held_out)) * train.epochs
            total = {hook: max(rows, expected) for hook, rows in total.items()}
        read = [hook for tasks in plan.tasks for hook in {task.group.hook for task in tasks}]
        work, before = sum(total[hook] for hook in read), sum(done[hook] for hook in read)
        self.observer.started(plan, sum(total.values()), work, before)

    def _finish(
        self, evaluated: list[dict[str, Any]], ledger: Ledger, dispatcher: Dispatcher
    ) -> None:
        members, groups = self.ready.members, self.ready.whole_groups
        status = results.statuses(members, ledger.frozen, evaluated)
        table = results.make_table(members, groups, status, evaluated)
        results.write_table(self.layout, table)
        results.write_members(self.layout, groups, status)
        self.observer.finished(table)
        self.record.end(
            "finished",
            busy_s=ledger.busy_s,
            stall_s=ledger.stall_s,
            peak_bytes=dispatcher.peak_bytes,
            seconds=time.time() - self.began,
        )


def _as_sweep(
    sweep: Sweep | Sequence[Mapping[str, Any]],
    activations: Mapping[str, Any] | None,
    train: Mapping[str, Any] | None,
    where: str,
) -> Sweep:
    if isinstance(sweep, Sweep):
        return sweep
    if activations is None:
        raise UserError(
            "A list of members needs activations.",
            where=where,
            allowed='activations={"store": "path"} or activations={"recipe": "embedded"}',
        )
    values = {
        "name": "sweep",
        "activations": dict(activations),
        "train": dict(train or {}),
        "members": [{key: _plain(value) for key, value in m.items()} for m in sweep],
    }
    return validate(Sweep, values, where)


def _plain(value: Any) -> Any:
    """A class as the name that a worker can import, a NumPy number as Python's."""
    if isinstance(value, type):
        return name_of(value)
    return value.item() if isinstance(value, np.generic) else value


def _latest(layout: Layout, observer: Observer) -> Checkpoint | None:
    checkpoints = Checkpoints(layout.checkpoints)
    found = checkpoints.latest() if layout.exists() else None
    for error in checkpoints.damaged if layout.exists() else []:
        observer.warning(f"a damaged checkpoint is passed over: {error}")
    return found


def _opened(layout: Layout) -> Run:
    """The run, with the signatures of its own."""
    run = Run(layout.folder, {})
    return Run(layout.folder, {name: resolve(name) for name in set(run.members["signature"])})


__all__ = ["Activations", "Interrupted", "run_sweep"]
