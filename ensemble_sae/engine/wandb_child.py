"""The process that sends a sweep to wandb: it follows the run's folder, and is told how far.

python -m ensemble_sae.engine.wandb_child FOLDER MODE PROJECT

stdin: JSON lines, {"rounds": 3}, {"finished": true}, {"page": "report/index.html"}; its end is
the end. stdout: a line for each thing that went wrong. Neither torch nor what needs it is
imported here, so that it is small and begins at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from ensemble_sae.engine.wandb_runs import Notes, Runs, Sweep, initialiser

OPENING_S = 1.5  # to open one wandb run
SHARE = 0.01  # of the sweep's time that opening may take


class News:
    """How far the run is; a thread keeps it up to date, whatever wandb is busy with."""

    def __init__(self, lines: TextIO) -> None:
        self._known: dict[str, Any] = {"rounds": 0, "finished": False, "page": None, "seconds": 0.0}
        self._changed, self._ended = threading.Condition(), False
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def wait(self, before: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
        """What is known once it differs from `before` or is all; whether it is all."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._known != before)
            return dict(self._known), self._ended

    def _read(self, lines: TextIO) -> None:
        for line in lines:
            with self._changed:
                self._known |= json.loads(line)
                self._changed.notify()
        with self._changed:
            self._ended = True
            self._changed.notify()


class Metrics:
    """Reads `metrics.jsonl` round by round, as far as rounds are complete."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def rounds(self, first: int, stop: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Rounds from `first` on and before `stop` that were not read before."""
        for number, rows in groupby(self._rows(stop), key=lambda row: int(row["round"])):
            if number >= first:
                yield number, list(rows)

    def _rows(self, stop: int) -> Iterator[dict[str, Any]]:
        if not self._path.is_file():
            return
        with open(self._path, "rb") as file:
            file.seek(self._at)
            for line in file:
                row = json.loads(line) if line.endswith(b"\n") else None
                if row is None or row["round"] >= stop:
                    return
                self._at += len(line)
                yield row


def follow(folder: Path, mode: str, project: str, news: News, say: Callable[[str], None]) -> None:
    """Send what the news says is there, until they end.

    Args:
        say: is told what the one who trains should know, in a line.
    """
    path, notes = folder / "metrics.jsonl", Notes.read(folder, project)
    metrics = Metrics(path)
    if mode == "online" and notes.rounds and _waits_for_sync(folder):
        say("wandb: this run began offline and goes on so; `wandb sync` its folder to send it")
        mode = "offline"
    runs: Runs | None = None
    seen: dict[str, Any] | None = None
    finished = page = None
    ended = False
    while not ended:
        known, ended = news.wait(seen)
        seen = known
        if runs is None:
            if not known["rounds"] and not known["finished"]:
                continue
            sweep = Sweep.read(folder)
            each = len(sweep.members) * OPENING_S <= SHARE * known["seconds"]
            runs = Runs(sweep, notes, initialiser(sweep, notes, mode), each)
        for number, rows in metrics.rounds(notes.rounds, known["rounds"]):
            runs.log(number, rows)
            notes.logged(number)
        if known["finished"] and not finished:
            runs.finish(_table(folder), Metrics(path).rounds(0, notes.rounds))
            finished = True
        if known["page"] != page:
            page = known["page"]
            runs.report(Path(page))
    if runs is not None:
        runs.close()


def _waits_for_sync(folder: Path) -> bool:
    """Whether there are runs that were kept offline and not sent yet."""
    kept = folder.glob("wandb/offline-run-*/*.wandb")
    return any(not path.with_suffix(".wandb.synced").exists() for path in kept)


def _table(folder: Path) -> list[dict[str, Any]]:
    """The members' table, with None where there is no value."""
    import pandas as pd

    table = pd.read_parquet(folder / "metrics.parquet").astype(object)
    found: list[Any] = table.where(table.notna(), None).to_dict("records")
    return found


def main(folder: str, mode: str, project: str) -> None:
    """Follow until stdin ends; a failure is one line, and an end at once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the one who trains decides
    os.nice(10)
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what wandb prints would go into the display, or fill the pipe

    def say(text: str) -> None:
        print(" ".join(text.split())[:500], file=told, flush=True)

    try:
        follow(Path(folder), mode, project, News(sys.stdin), say)
    except BaseException as error:
        say(f"wandb failed and is left out: {error!r}")
        os._exit(1)  # wandb's own end might wait for its server


if __name__ == "__main__":
    main(*sys.argv[1:])
