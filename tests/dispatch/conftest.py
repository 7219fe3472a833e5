"""Runs that several tests compare with: made once, also when tests run side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
from filelock import FileLock

import ensemble_sae
from ensemble_sae.run import Run


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all test processes share, with the stores and the sweep in it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "small"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            small.write_stores(folder / "stores")
            small.write_sweep(folder)
    return folder


@pytest.fixture(scope="session")
def sweep(shared: Path) -> Path:
    """The sweep's file."""
    return shared / "small.toml"


def _undisturbed(shared: Path, workers: int) -> Run:
    run = shared / f"undisturbed-{workers}"
    with FileLock(f"{run}.lock"):
        if not run.exists():
            small.train(shared / "small.toml", run, devices=f"cpu:{workers}")
    return ensemble_sae.load(run, signatures={"traps:Trapped": small.traps.Trapped})


@pytest.fixture(scope="session")
def one_worker(shared: Path) -> Run:
    """The sweep, undisturbed, on one worker."""
    return _undisturbed(shared, 1)


@pytest.fixture(scope="session")
def two_workers(shared: Path) -> Run:
    """The sweep, undisturbed, on two workers."""
    return _undisturbed(shared, 2)
