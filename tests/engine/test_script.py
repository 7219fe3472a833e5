"""`run_sweep` from a script, with a signature of its own; and what a dry run shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from rich.console import Console

import ensemble_sae
from ensemble_sae.engine.command import Options, execute
from ensemble_sae.errors import UserError

SCRIPT = """
import numpy as np
import torch
import ensemble_sae
from ensemble_sae.engine.run_sweep import run_sweep


class Linear:
    @staticmethod
    def init(d_activation, n_dict, *, generator, l1=0.0):
        weight = torch.randn(n_dict, d_activation, generator=generator) / d_activation**0.5
        return {"weight": weight}, {"l1": torch.tensor(l1)}

    @staticmethod
    def loss(params, buffers, batch):
        code = batch @ params["weight"].T
        mse = (code @ params["weight"] - batch).pow(2).mean()
        return mse + buffers["l1"] * code.abs().sum(-1).mean(), {"mse": mse}


if __name__ == "__main__":
    members = [{"signature": Linear, "n_dict": 6, "l1": l1} for l1 in np.logspace(-4, -2, 3)]
    members.append({"signature": "tied", "dict_ratio": np.float32(2), "l1": 1e-3})
    run = run_sweep(members, activations={"store": "stores/a"}, train={"batch_size": 64},
                    devices="cpu:1", threads=1)
    print(run.members[["signature", "l1", "status", "fvu"]])
    print(run.sae(0).params["weight"].shape)
"""


def test_run_sweep_from_a_script(tmp_path: Path) -> None:
    small.write_stores(tmp_path / "stores")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([6, 8])" in done.stdout
    folder = tmp_path / "runs" / "sweep"
    with pytest.raises(UserError, match="__main__:Linear"):
        ensemble_sae.load(folder).sae(0)
    run = ensemble_sae.load(folder, signatures={"__main__:Linear": object})
    assert run.sae(1).params["weight"].shape == (6, 8)
    assert run.members["l1"].tolist()[:3] == list(np.logspace(-4, -2, 3))
    assert run.members["fvu"].isna().tolist() == [True, True, True, False]
    assert torch.isfinite(run.sae(3)(torch.randn(5, 8))).all()


def test_a_dry_run_shows_everything_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small.write_stores(tmp_path / "stores")
    sweep = small.write_sweep(tmp_path)
    before = sorted(os.walk(tmp_path))
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    assert execute(Options(sweep=str(sweep), devices="cpu:2", dry_run=True), console) == 0
    console.file.close()
    assert sorted(os.walk(tmp_path)) == before
    said = console.export_text()
    for words in ("13 members", "untied-n80-b", "cpu:0 (2), cpu:1 (1)", "parameters", "GFLOP"):
        assert words in said, said
    for words in ("5,120 training rows", "2 epoch(s)", "minutes", "TFLOP", "balance"):
        assert words in said, said
