"""A run's folder belongs to one process, and a sweep that was refused leaves none behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_sae.engine.claim import claimed
from ensemble_sae.errors import UserError


def begin_and_be_refused(folder: Path, file: str | None = None) -> None:
    with claimed(folder, folder, resume=False) as layout:
        assert layout.folder.is_dir()
        if file is not None:
            (layout.folder / file).write_text("mine")
        raise UserError("no such store")


def test_a_sweep_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="no such store"):
        begin_and_be_refused(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_others_put_into_the_folder_stays(tmp_path):
    with pytest.raises(UserError, match="no such store"):
        begin_and_be_refused(tmp_path / "run", "notes.txt")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_folder_is_claimed_once(tmp_path):
    with claimed(tmp_path / "run", None, resume=False) as first:
        with pytest.raises(UserError, match="Another process"):
            claimed(tmp_path, tmp_path / "run", resume=False).__enter__()
        with claimed(tmp_path / "run", None, resume=False) as second:
            assert second.folder.name == "run-2"
        assert first.folder.is_dir()
