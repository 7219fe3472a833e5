"""Every study's quick version, by its command, as a new user would run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def study(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ensemble_sae.study", *words],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=600,
    )


def quick(name: str, folder: Path, *more: str) -> dict[str, Any]:
    """Run it; every figure of its page is there. Its numbers."""
    done = study(name, "--quick", "--devices", "cpu:1", "--threads", "1", *more, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    out = folder / "studies" / f"{name}-quick"
    text = (out / "index.html").read_text()
    shown = re.findall(r'<img src="([^"]+)"', text)
    assert shown
    assert sorted(shown) == sorted(path.name for path in out.glob("*.png"))
    assert all((out / picture).stat().st_size > 10_000 for picture in shown)
    assert "nan" not in re.sub("<[^>]*>", " ", text).lower().split()
    return json.loads((out / "numbers.json").read_text())


def test_toy_96(tmp_path: Path):
    found = quick("toy_96", tmp_path)
    members = found["members"]
    assert len(members) == 60
    for hook in ("uncorrelated", "correlated"):
        own = [m for m in members if m["hook"] == hook]
        assert max(m["mmcs"] for m in own) > 0.9
        by_size: dict[float, list[dict[str, Any]]] = {}
        for m in own:
            by_size.setdefault(m["dict_ratio"], []).append(m)
        for sized in by_size.values():  # too small a penalty finds less than the best one
            found_by = [m["mmcs_truth"] for m in sorted(sized, key=lambda m: m["l1"])]
            assert max(found_by[0], found_by[-1]) < max(found_by)  # the best penalty is inside
    names = {row["baseline"] for row in found["baselines"]}
    assert {"kmeans", "kmedoids", "pca", "ica", "ksvd_omp"} <= names
    assert {h["features"] for h in found["histories"]} == {64}


def test_an_interrupted_study_is_kept(tmp_path: Path):
    """Interrupted while it trains: all is saved, and only the same settings go on."""
    words = ("overcomplete_tricks", "--quick", "--devices", "cpu:1", "--threads", "1")
    words += ("--set", "train.epochs=2", "--out", "mine")
    command = [sys.executable, "-m", "ensemble_sae.study", *words]
    begun = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    checkpoints = tmp_path / "mine/tricks_sparse/checkpoints"
    while begun.poll() is None and not list(checkpoints.glob("step-*")):
        time.sleep(0.2)
    begun.send_signal(signal.SIGINT)
    said, _ = begun.communicate(timeout=120)
    assert begun.returncode == 130, said
    assert "ensemble_sae.study overcomplete_tricks" in said
    other = study(*words, "--set", "train.lr=1e-3", folder=tmp_path)
    assert other.returncode == 2
    assert "another sweep" in other.stderr
    assert not (tmp_path / "mine/index.html").exists()


def test_init_study(tmp_path: Path):
    found = quick("init_study", tmp_path)
    table = {row["start"]: row for row in found["small"]["table"]}

    def start(name: str) -> float:
        return float(table[name]["MMCS at the start"].split(" ")[0])

    assert start("rows") > 0.5
    assert start("orthogonal") < start("rows") - 0.1
    again = study("init_study", "--quick", folder=tmp_path)  # all is there: only drawn again
    assert again.returncode == 0, again.stdout + again.stderr
    assert "finished already" in again.stdout + again.stderr


def test_overcomplete_tricks(tmp_path: Path):
    found = quick("overcomplete_tricks", tmp_path)
    flags = {(row["dictionary"], row["active"]): row["flags"] for row in found["given"]}
    assert flags["true features", 2.0] == "none"
    assert "near-identity" in flags["axes", 2.0]
    assert "opposite pairs" in flags["rotated and negatives", 24.0]
    sparse = [row for row in found["learned"] if row["rows"] == "sparse"]
    assert max(row["MMCS of the truth"] for row in sparse) > 0.9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("toy_69",), "did you mean 'toy_96'"),
        (("toy_96", "--set", "grid.ratio=2"), "ratio"),
        (("toy_96", "--devices", "tpu:1"), "tpu"),
        (("toy_96", "--quick", "--set", "grid.seed=[0, 1]"), "cannot draw this axis"),
        (("init_study", "--quick", "--set", "activations.recipe=toy_small"), "hook"),
        (("init_study", "--quick", "--set", "grid.l1=[1e-3, 1e-2]"), "l1"),
        (("toy_96", "--set", "activations.recipe=embedded"), "known"),
        (("toy_96", "--quick", "--out", sys.executable), "cannot be made"),
    ],
)
def test_mistakes_are_told_in_one_error(words: tuple[str, ...], said: str, tmp_path: Path):
    done = study(*words, folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
