"""Fixtures: a small finished run at two hook points of the embedded model, for all workers."""

from __future__ import annotations

import json
import os
import shutil
from itertools import islice
from pathlib import Path

import pytest
from filelock import FileLock

RESID, MLP = "blocks.2.hook_resid_pre", "blocks.2.hook_mlp_out"
RECIPE = f"""
model = "embedded"
dataset = "{{texts}}"
hooks = ["{RESID}", "{MLP}"]
context = 40
rows = 8_000
chunk_rows = 4_096
held_out = 0.25
seed = 3
"""
MEMBERS = [
    {"signature": "tied", "n_dict": 64, "l1": 1e-3, "hook": RESID},
    {"signature": "untied", "n_dict": 64, "l1": 1e-3, "hook": RESID},
    {"signature": "untied", "n_dict": 112, "l1": 1e-3, "hook": RESID},
    {"signature": "untied", "n_dict": 112, "l1": 1e-2, "hook": RESID},
    {"signature": "tied", "n_dict": 96, "l1": 1e-3, "hook": f"{RESID} + {MLP}"},
    {"signature": "transcoder", "n_dict": 48, "l1": 1e-3, "hook": f"{RESID} -> {MLP}"},
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder: to be copied, not written to."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-lm-run"
    with FileLock(f"{shared}.lock"):
        if not (shared / "done").exists():
            shutil.rmtree(shared, ignore_errors=True)
            shared.mkdir()
            make_run(shared)
            (shared / "done").touch()
    return shared / "run"


def write_texts(path: Path) -> None:
    """Short pieces of the embedded corpus: the whole of it takes seconds to tokenise."""
    from ensemble_sae.lm.corpus import documents

    pieces = [
        text[start : start + 700]
        for _, text in islice(documents(), 0, 60, 3)
        for start in range(0, min(len(text), 2800), 700)
    ]
    path.write_text("\n".join(json.dumps({"text": piece}) for piece in pieces))


def make_run(folder: Path, members: list[dict] = MEMBERS) -> None:
    """Harvest and train: `folder/data`, `folder/run`."""
    from ensemble_sae import run_sweep

    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.jsonl"
    write_texts(texts)
    (folder / "small.toml").write_text(RECIPE.format(texts=texts))
    run_sweep(
        members,
        activations={"recipe": str(folder / "small.toml"), "normalise": "standard"},
        train={"batch_size": 64, "lr": 3e-3},
        run=folder / "run",
        data_dir=folder / "data",
        devices="cpu:1",
        threads=1,
    )


@pytest.fixture(scope="session")
def bridge() -> object:
    """The embedded model, loaded once."""
    from ensemble_sae.lm.load import load_model

    return load_model("embedded")


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, not evaluated yet."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    return tmp_path / "run"
