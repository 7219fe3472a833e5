"""Weights & Biases: one run per member under readable names, or one run for the sweep.

Everything happens in a thread of the dispatcher's process, fed through a queue: a wandb that is
slow, fails or hangs costs the training nothing. Opening a wandb run takes about a second, so
where one per member would take more than 1% of the sweep's time, there is one for the sweep with
the members' names as series.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.dispatch.planner import Plan
from ensemble_sae.errors import UserError
from ensemble_sae.files import read_json, write_json
from ensemble_sae.sweep import Member

Mode = Literal["online", "offline", "off"]

OPENING_S = 1.5  # to open one wandb run
SHARE = 0.01  # of the sweep's time that opening may take
PATIENCE_S = 60.0  # at the end, for what is still to be sent
SERIES = ("loss", "mse", "fvu", "l0")


def resolve_mode(wanted: str) -> Mode:
    """`auto`: what WANDB_MODE says, else online when logged in, else offline. Never asks.

    Raises:
        UserError: another word.
    """
    if wanted in ("online", "offline", "off"):
        return wanted  # type: ignore[return-value]
    if wanted != "auto":
        raise UserError("Unknown wandb mode.", found=wanted, allowed="auto, online, offline, off")
    said = os.environ.get("WANDB_MODE")
    if said in ("online", "offline"):
        return said  # type: ignore[return-value]
    if said in ("disabled", "dryrun"):
        return "off" if said == "disabled" else "offline"
    return "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbLog(Observer):
    """Sends a sweep's metrics to wandb, or keeps them in `<run>/wandb` when offline."""

    def __init__(self, mode: Mode, project: str, warn: Callable[[str], None]) -> None:
        self._mode, self._project, self._warn = mode, project, warn
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._members: dict[int, Member] = {}
        self._began = 0.0
        self._rows = self._work_rows = 0
        self._runs: _Runs | None = None
        self._folder = Path()

    def opened(self, folder: Path) -> None:
        self._folder = folder

    def started(self, plan: Plan, rows: int, work: int, done: int) -> None:
        self._members = {m.id: m for tasks in plan.tasks for t in tasks for m in t.members}
        self._work_rows = work - done
        self._thread.start()

    def progress(self, rows: int, sae_rows: int, means: Mapping[str, Any]) -> None:
        self._began = self._began or time.monotonic()  # not with the workers, which take a while
        self._rows += rows

    def round_done(self, number: int, rows: list[dict[str, Any]]) -> None:
        estimate = self._estimated_seconds()
        self._queue.put(lambda: self._open(estimate).log(number, rows))

    def finished(self, table: Any) -> None:
        rows = table.drop(columns="density_histogram", errors="ignore").to_dict("records")
        estimate = self._estimated_seconds()
        self._queue.put(lambda: self._open(estimate).finish(rows))

    def ended(self) -> None:
        """Wait a while for what is still to be sent; give it up rather than hang."""
        if not self._thread.is_alive():
            return
        self._queue.put(None)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self._warn(f"wandb did not finish within {PATIENCE_S:.0f} s; the run itself is whole")

    def _estimated_seconds(self) -> float:
        passed = time.monotonic() - self._began
        return passed * max(1.0, self._work_rows / max(self._rows, 1))

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                job()
            except Exception as error:  # whatever wandb does, the training goes on
                self._warn(f"wandb failed and is left out: {error!r}")
                while self._queue.get() is not None:
                    pass
                return
        if self._runs is not None:
            self._runs.close()

    def _open(self, estimated_seconds: float) -> _Runs:
        if self._runs is None:
            ids = _ids(self._folder)
            each = len(self._members) * OPENING_S <= SHARE * estimated_seconds
            if ids:  # a resumed sweep goes on as it began
                each = ALL not in ids
            make = _PerMember if each else _PerSweep
            self._runs = make(self._members, self._init, ids)
            write_json(self._folder / IDS, ids)
        return self._runs

    def _init(self, name: str, run_id: str, config: dict[str, Any]) -> Any:
        import wandb

        return wandb.init(
            project=self._project,
            group=self._folder.name,
            name=name,
            id=run_id,
            config=config,
            dir=self._folder,
            mode="online" if self._mode == "online" else "offline",
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", quiet=True, save_code=False),
        )


ALL = "all members"
IDS = "wandb.json"  # name -> wandb's id, so that a resumed sweep continues the same wandb runs


def _ids(folder: Path) -> dict[str, str]:
    path = folder / IDS
    return dict(read_json(path)) if path.is_file() else {}


def _id(ids: dict[str, str], name: str) -> str:
    import secrets

    return ids.setdefault(name, secrets.token_hex(4))


Init = Callable[[str, str, dict[str, Any]], Any]


class _PerMember:
    """One wandb run for each member."""

    def __init__(self, members: Mapping[int, Member], init: Init, ids: dict[str, str]) -> None:
        self._runs = {m.id: init(m.name, _id(ids, m.name), m.as_row()) for m in members.values()}

    def log(self, number: int, rows: list[dict[str, Any]]) -> None:
        """One round's rows."""
        for row in rows:
            values = {name: row[name] for name in SERIES if row.get(name) is not None}
            self._runs[row["member"]].log({**values, "step": row["step"]}, step=number)

    def finish(self, rows: list[dict[str, Any]]) -> None:
        """The held-out metrics, into each run's summary."""
        for row in rows:
            held_out = {f"held_out/{name}": row[name] for name in ("fvu", "l0", "dead")}
            self._runs[row["id"]].summary.update({**held_out, "status": row["status"]})

    def close(self) -> None:
        """End all runs."""
        for run in self._runs.values():
            run.finish()


class _PerSweep:
    """One wandb run; the members' names are its series."""

    def __init__(self, members: Mapping[int, Member], init: Init, ids: dict[str, str]) -> None:
        self._members = members
        config = {m.name: m.as_row() for m in members.values()}
        self._run = init(ALL, _id(ids, ALL), config)

    def log(self, number: int, rows: list[dict[str, Any]]) -> None:
        """One round's rows."""
        self._run.log(
            {
                f"{name}/{self._members[row['member']].name}": row[name]
                for row in rows
                for name in SERIES
                if row.get(name) is not None
            },
            step=number,
        )

    def finish(self, rows: list[dict[str, Any]]) -> None:
        """The held-out metrics, as a table."""
        import wandb

        columns = [name for name in rows[0] if name != "hyperparameters"]
        data = [[row[name] for name in columns] for row in rows]
        self._run.log({"members": wandb.Table(columns=columns, data=data)})

    def close(self) -> None:
        """End the run."""
        self._run.finish()


_Runs = _PerMember | _PerSweep
