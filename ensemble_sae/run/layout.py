"""A run's folder: which file is what.

sweep.json       the resolved sweep, its stores, and the units that it is trained in
run.json         status, versions, devices, timing
members.json     every member: its configuration, group and status
checkpoints/     step-00001536/: one safetensors file per group, and manifest.json
metrics.jsonl    one line per member and chunk, over time
metrics.parquet  one row per member, on held-out rows, at the end
truth/           per hook point: the features that synthetic rows are made of
features/        per group: how often and how strongly each feature fires, at the end
evaluation/      members in the place of what they reconstruct: losses of the language model
inspected/       per member that was looked at: contexts of its features, what they promote and do
interpreted/     explanations of features and their scores; answers of language models
report/          index.html: the run as a page
wandb/           what is sent to wandb, or kept for it; wandb.json says as what
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import read_json

SCHEMA_VERSION = 1
LOCK = ".lock"


class Busy(UserError):
    """Another process is writing this run."""


class Layout:
    """Paths inside one run's folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.sweep = self.folder / "sweep.json"
        self.status = self.folder / "run.json"
        self.members = self.folder / "members.json"
        self.checkpoints = self.folder / "checkpoints"
        self.metrics = self.folder / "metrics.jsonl"
        self.table = self.folder / "metrics.parquet"
        self.features = self.folder / "features"
        self.truth = self.folder / "truth"
        self.evaluation = self.folder / "evaluation"
        self.report = self.folder / "report" / "index.html"

    def exists(self) -> bool:
        """Whether this folder holds a run."""
        return self.sweep.is_file()

    def remove_if_empty(self) -> None:
        """Remove the folder if no run was begun in it; called by the one who holds the lock."""
        if not self.exists():
            with suppress(OSError):  # something else is in there: it stays
                (self.folder / LOCK).unlink(missing_ok=True)
                self.folder.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; the operating system lets go when the process ends.

        Raises:
            Busy: another process is writing this run. UserError: there can be no such folder.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "The run's folder cannot be made.",
                where=str(self.folder),
                found=str(error.strerror),
                next_step="give another folder",
            ) from None
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(
                "Another process is training into this run.",
                where=str(self.folder),
                next_step="wait for it, or give another folder with --run",
            ) from None
        try:
            yield
        finally:
            lock.release()


def read_versioned(path: Path) -> dict[str, Any]:
    """A JSON object with a `schema_version` that this version of the package reads."""
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("schema_version"), int):
        raise CorruptFile(
            "A file of a run is damaged.",
            where=f"{path}: schema_version",
            found=repr(value.get("schema_version") if isinstance(value, dict) else value)[:80],
            allowed="a whole number",
        )
    if value["schema_version"] > SCHEMA_VERSION:
        raise CorruptFile(
            "This run was written by a newer version of ensemble-sae.",
            where=f"{path}: schema_version",
            found=str(value["schema_version"]),
            allowed=f"up to {SCHEMA_VERSION}",
            next_step="pip install --upgrade ensemble-sae",
        )
    return value


def numbered(folder: Path) -> Iterator[Path]:
    """`folder`, `folder-2`, `folder-3`, ..."""
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")
