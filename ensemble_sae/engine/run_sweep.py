"""A whole sweep: stores, members, plan, training, evaluation, tables."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemble_sae.config.strict import validate
from ensemble_sae.data.location import data_dir as default_data_dir
from ensemble_sae.dispatch import devices as device_choice
from ensemble_sae.dispatch.dispatcher import Dispatcher, Interrupted
from ensemble_sae.dispatch.ledger import Ledger
from ensemble_sae.dispatch.messages import Source, WorkerSpec
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.engine import results, stores
from ensemble_sae.engine.harvesting import Harvesting, NoHarvest, in_background, now
from ensemble_sae.engine.prepared import Prepared, default_run_folder, prepare
from ensemble_sae.engine.resume import Record, same_sweep
from ensemble_sae.errors import UserError
from ensemble_sae.run import Checkpoint, Checkpoints, Layout, Run
from ensemble_sae.run.layout import next_free
from ensemble_sae.run.metrics import MetricsLog
from ensemble_sae.signatures import resolve
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
    observer: Observer | None = None,
    where: str = "run_sweep",
) -> Run:
    """Train every member of a sweep in one pass over the activations.

        run_sweep([{"signature": "tied", "dict_ratio": 4, "l1": 1e-3}],
                  activations={"store": "data/mine"}, run="runs/mine")

    A script that calls this needs `if __name__ == "__main__":`, since workers are spawned.

    Args:
        sweep: a loaded sweep file, or a list of members with the keys of `[[members]]`.
        activations, train: the tables of a sweep file, for a list of members.
        run: the run's folder; default `runs/<name>`, numbered if that is taken.
        devices: "cuda:0,cuda:1" or "cpu:2"; gpus: that many GPUs; default: what is there.
        threads: of each CPU worker; default: the cores divided by the workers.
        resume: go on from the last checkpoint in `run`.
        stream: harvest and train at the same time; discard: delete chunks that all have used.
        data_dir: where harvested stores are; default `$ENSEMBLE_SAE_DATA` or `./data`.
        observer: is told of progress.

    Raises:
        UserError: something in the sweep, the data or the machine does not fit.
        Interrupted: SIGINT or SIGTERM, when everything is saved.
    """
    sweep = _as_sweep(sweep, activations, train, where)
    chosen = device_choice.choose(gpus, devices, threads)
    layout = _layout(sweep, run, resume)
    sources = stores.locate(sweep.activations, default_data_dir(data_dir))
    with layout.locked():
        checkpoint = _checkpoint(layout, sweep, resume, observer or Observer())
        ready = prepare(sweep, where, sources, chosen, checkpoint)
        harvesting: Harvesting = NoHarvest()
        if not sources.there:
            assert sources.recipe is not None
            harvest = in_background if stream else now
            harvesting = harvest(sources.recipe, default_data_dir(data_dir), observer or Observer())
        with harvesting:
            return _Training(ready, layout, harvesting, observer or Observer(), discard).run(
                checkpoint
            )


class _Training:
    """One call of `run_sweep`, once the run's folder is ours."""

    def __init__(
        self,
        ready: Prepared,
        layout: Layout,
        harvesting: Harvesting,
        observer: Observer,
        discard: bool,
    ) -> None:
        self.ready, self.layout, self.harvesting = ready, layout, harvesting
        self.observer, self.discard = observer, discard
        self.began = time.time()
        harvesting.wait_for_first_chunks(ready.sources, ready.hooks)
        self.stores = ready.sources.open(ready.hooks)
        stores.check_rows(self.stores, ready.sweep.train.batch_size)

    def run(self, checkpoint: Checkpoint | None) -> Run:
        """Train, evaluate, write the tables; keep `run.json` true whatever happens."""
        members = {member.id: member for member in self.ready.members}
        record = Record.start_or_continue(self.layout, self.ready, self.stores, checkpoint)
        log = MetricsLog(self.layout.metrics)
        ledger = Ledger(log, len(self.ready.plan.devices), members, self.observer)
        if checkpoint is not None:
            ledger.restore(checkpoint.position.round, checkpoint.notes)
        else:
            log.cut(0)
        checkpoints = Checkpoints(self.layout.checkpoints)
        checkpoints.clean()
        dispatcher = self._dispatcher(checkpoints, ledger, record, checkpoint)
        self.observer.opened(self.layout.folder)
        self._announce(checkpoint)
        try:
            with _signals(dispatcher):
                evaluated = dispatcher.run(checkpoint)
            self._finish(evaluated, ledger, dispatcher, record)
        except Interrupted:
            record.end("interrupted")
            raise
        except BaseException:
            record.end("failed")
            raise
        finally:
            self.observer.ended()
        own = {member.signature: resolve(member.signature) for member in self.ready.members}
        return Run(self.layout.folder, own)

    def _dispatcher(
        self,
        checkpoints: Checkpoints,
        ledger: Ledger,
        record: Record,
        checkpoint: Checkpoint | None,
    ) -> Dispatcher:
        train = self.ready.sweep.train
        sources = {h: Source(str(s.path), record.units[h]) for h, s in self.stores.items()}
        folder = str(checkpoint.folder) if checkpoint else None
        plan = self.ready.plan
        specs = [
            WorkerSpec(device, tasks, train, sources, folder)
            for device, tasks in zip(plan.devices, plan.tasks, strict=True)
        ]
        return Dispatcher(
            specs,
            checkpoints=checkpoints,
            keep=train.keep_checkpoints,
            every=train.checkpoint_every,
            features=self.layout.features,
            ledger=ledger,
            observer=self.observer,
            more=self._more,
        )

    def _more(self) -> tuple[list[Any], bool]:
        """All rounds that are known, and whether there will be no others."""
        complete = self.harvesting.done()
        for store in self.stores.values():
            store.refresh()
        chunks = {h: [c.index for c in s.chunks()] for h, s in self.stores.items()}
        if complete:
            return self.ready.rounds(chunks, as_written=self.harvesting.streams), True
        together = min(len(indices) for indices in chunks.values())
        first = {hook: indices[:together] for hook, indices in chunks.items()}
        train = self.ready.sweep.train
        from ensemble_sae.dispatch.schedule import rounds

        return rounds(first, epochs=1, seed=train.seed, as_written=True), False

    def _announce(self, checkpoint: Checkpoint | None) -> None:
        train = self.ready.sweep.train
        by_hook = {h: train.epochs * s.rows() for h, s in self.stores.items()}
        plan = self.ready.plan
        reads = [{t.group.hook for t in tasks} for tasks in plan.tasks]
        work = sum(by_hook[hook] for hooks in reads for hook in hooks)
        steps = checkpoint.step if checkpoint else 0
        done = sum(steps * train.batch_size for hooks in reads for _ in hooks)
        self.observer.started(plan, sum(by_hook.values()), work, done)

    def _finish(
        self,
        evaluated: list[dict[str, Any]],
        ledger: Ledger,
        dispatcher: Dispatcher,
        record: Record,
    ) -> None:
        status = {
            m.id: f"frozen at step {ledger.frozen[m.id]}" if m.id in ledger.frozen else "trained"
            for m in self.ready.members
        }
        table = results.make_table(self.ready.members, self.ready.groups, status, evaluated)
        results.write_table(self.layout, table)
        results.write_members(self.layout, self.ready.groups, status)
        self.observer.finished(table)
        record.end(
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
        "members": [dict(member) for member in sweep],
    }
    return validate(Sweep, values, where)


def _layout(sweep: Sweep, run: str | Path | None, resume: bool) -> Layout:
    folder = Path(run) if run is not None else default_run_folder(sweep)
    if resume:
        if not Layout(folder).exists():
            raise UserError(
                "There is no run to resume.",
                where=str(folder),
                next_step="--run FOLDER names the run; without --resume a new one begins",
            )
        return Layout(folder)
    if run is None:
        return Layout(next_free(folder))
    if Layout(folder).exists():
        raise UserError(
            "This folder already holds a run.",
            where=str(folder),
            next_step="--resume goes on with it; another --run begins a new one",
        )
    return Layout(folder)


def _checkpoint(
    layout: Layout, sweep: Sweep, resume: bool, observer: Observer
) -> Checkpoint | None:
    if not resume:
        return None
    same_sweep(layout, sweep)
    checkpoints = Checkpoints(layout.checkpoints)
    found = checkpoints.latest()
    for error in checkpoints.damaged:
        observer.warning(f"a damaged checkpoint is passed over: {error}")
    return found


@contextmanager
def _signals(dispatcher: Dispatcher) -> Iterator[None]:
    """SIGINT and SIGTERM pause and save; a second one ends at once."""

    def handle(number: int, frame: Any) -> None:
        if dispatcher.signal:
            raise KeyboardInterrupt
        dispatcher.interrupt(number)

    try:
        before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread (a notebook's, say): signals stay who they were
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Activations", "Interrupted", "run_sweep"]
