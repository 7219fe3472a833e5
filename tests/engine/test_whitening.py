"""A store that cannot be whitened is refused before anything is trained or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small
import torch

from ensemble_sae.data.store import ChunkStore
from ensemble_sae.dispatch.devices import choose
from ensemble_sae.engine import stores
from ensemble_sae.engine.prepared import prepare
from ensemble_sae.engine.run_sweep import run_sweep
from ensemble_sae.errors import UserError
from ensemble_sae.randomness import generator
from ensemble_sae.sweep import Sweep

D = 6


def rows(d: int = D) -> torch.Tensor:
    return torch.randn(2000, d, generator=generator(0, "whitening", d)) + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hook points: two that are fine, one that lacks a dimension, one that a relu takes it from."""
    fine = rows()
    constant, negative = fine.clone(), fine.clone()
    constant[:, 2] = 3.0
    negative[:, 4] = -1 - negative[:, 4].abs()
    found = {"fine": fine, "constant": constant, "negative": negative, "other": rows(D - 1)}
    for hook, values in found.items():
        ChunkStore.write(tmp_path / "stores" / hook, values, chunk_rows=500, held_out=0.2)
    return tmp_path


def sweep(folder: Path, *members: dict[str, Any], normalise: str = "none") -> Sweep:
    activations = {"store": str(folder / "stores"), "normalise": normalise}
    common = {"signature": "tied", "n_dict": 8}
    values = {"name": "w", "activations": activations, "train": {"batch_size": 50}}
    return Sweep.model_validate(values | {"members": [common | m for m in members]})


def prepared(made: Sweep, folder: Path) -> None:
    sources = stores.locate(made.activations, folder)
    prepare(made, "w.toml", sources, choose(None, "cpu:1", 1), None)


@pytest.mark.parametrize("normalise", ["none", "scale", "standard"])
@pytest.mark.parametrize(
    "member",
    [
        {"hook": "constant"},
        {"hook": "fine + constant"},
        {"hook": "fine + negative"},  # which have dimensions in common
        {"hook": "negative", "input_relu": True, "centring": "mean", "signature": "topk"},
    ],
)
def test_a_singular_covariance_is_refused(folder: Path, member: dict, normalise: str) -> None:
    if normalise == "standard" and member.get("input_relu"):
        pytest.skip("centred rows are on both sides of 0")
    others = {"hook": "fine", "whitening": True}, {"hook": "constant", "whitening": False}
    made = sweep(folder, *others, member | {"whitening": True}, normalise=normalise)
    with pytest.raises(UserError) as error:
        prepared(made, folder)
    message = str(error.value)
    words = "w.toml: member 2 (", f"hook={member['hook']}", "whitening = true", "eigenvalues from"
    assert [word for word in words if word not in message] == []


def test_what_can_be_whitened_is_not_refused(folder: Path) -> None:
    fine = {"hook": "fine", "whitening": True}, {"hook": "fine", "whitening": True, "seed": 1}
    prepared(sweep(folder, *fine, {"hook": "negative", "whitening": True}), folder)


def test_a_sample_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    read = ChunkStore.activations

    def counted(self: ChunkStore, index: int, verify: bool = False) -> torch.Tensor:
        looked.append(index)
        return read(self, index, verify)

    monkeypatch.setattr(ChunkStore, "activations", counted)
    names = "tied", "untied", "topk"
    same = [{"hook": "fine", "whitening": True, "signature": name} for name in names]
    prepared(sweep(folder, *same), folder)
    assert len(looked) == 1
    prepared(sweep(folder, {"hook": "constant"}), folder)
    assert len(looked) == 1, "nothing is read for those who do not whiten"


def test_nothing_is_written(folder: Path) -> None:
    made = sweep(folder, {"hook": "constant", "whitening": True})
    with pytest.raises(UserError, match="cannot be whitened"):
        run_sweep(made, run=folder / "run", devices="cpu:1", threads=1)
    assert not (folder / "run").exists()


def test_what_is_fine_trains(folder: Path) -> None:
    members = {"hook": "fine", "whitening": True}, {"hook": "fine + other", "whitening": True}
    run = small.train(sweep(folder, *members), folder / "run")
    assert set(run.members["status"]) == {"trained"}
    assert run.members["fvu"].notna().all()
