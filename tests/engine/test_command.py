"""The command line: what is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import ensemble_sae
from ensemble_sae import big_sweep

SWEEP = """
[activations]
store = "{store}"
[grid]
signature = "tied"
n_dict = 8
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "tf32"], ["tf32 is a format of CUDA devices", "allowed: fp32 or bf16"]),
        (["--precision", "fp8"], ["train.precision", "'fp8'"]),
        (["--kernel", "sparce"], ["train.kernel", "'sparce'"]),
        (["--quick"], ["no smaller version", "[quick]"]),
    ],
    ids=str,
)
def test_is_explained(words: list[str], said: list[str], tmp_path: Path) -> None:
    ensemble_sae.ChunkStore.write(tmp_path / "rows", torch.randn(64, 4), chunk_rows=32)
    (tmp_path / "mine.toml").write_text(SWEEP.format(store=tmp_path / "rows"), encoding="utf-8")
    app = typer.Typer()
    app.command()(big_sweep.main)
    given = [str(tmp_path / "mine.toml"), "--devices", "cpu:1", "--run", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*given, *words])
    assert done.exit_code == 2
    assert [word for word in said if word not in done.output] == []
    assert not (tmp_path / "run").exists()
