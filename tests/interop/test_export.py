"""`python -m ensemble_sae.export` on a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import ensemble_sae
from ensemble_sae import export as command
from ensemble_sae.errors import UserError
from ensemble_sae.interop import FORMATS, export, from_saelens


@pytest.fixture
def run_command():
    app = typer.Typer()
    app.command()(command.main)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


def test_one_member(folder: Path, tmp_path: Path, run_command) -> None:
    out = tmp_path / "out"
    shown = run_command(folder, "--member", 1, "--to", "saelens", "--out", out)
    assert shown.exit_code == 0, shown.output
    assert "SAE.load_from_disk" in shown.output
    sae = ensemble_sae.load(folder).sae(1)
    x = torch.randn(16, 128)
    rows = sae.units.leave(x)
    torch.testing.assert_close(from_saelens(out)(rows), sae(rows), rtol=1e-4, atol=1e-3)
    config = json.loads((out / "cfg.json").read_text())["metadata"]
    assert config["hook_name"] == "blocks.2.hook_resid_pre"
    assert config["model_name"] == "embedded"
    assert config["ensemble_sae"]["signature"] == "untied"
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name:")
    assert "| fvu | " in card
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "cfg.json",
        "sae_weights.safetensors",
    ]


def test_the_frontier_goes_into_folders(folder: Path, tmp_path: Path, run_command) -> None:
    run = ensemble_sae.load(folder)
    best = [int(m) for m in run.members.index[run.members["pareto"]]]
    single = [m for m in best if m < 4]
    assert 0 < len(single) < len(best)  # the others have several points
    for form in ("saelens", "dictionary_learning", "safetensors"):
        shown = run_command(folder, "--pareto", "--to", form, "--out", tmp_path / form)
        assert shown.exit_code == 0, shown.output
        assert shown.output.count("left out: ") == len(best) - len(single)
        assert "several hook points" in shown.output.replace("\n", " ")
        found = sorted(path.name.partition("-")[0] for path in (tmp_path / form).iterdir())
        assert found == [f"{m:05d}" for m in sorted(single)]
    again = run_command(folder, "--pareto", "--to", "sparsify", "--out", tmp_path / "none")
    assert again.exit_code == 2
    twice = export(run, [0, 0, 3], "saelens", tmp_path / "twice")
    assert len(twice) == 2


def test_what_is_there_stays(folder: Path, tmp_path: Path) -> None:
    run = ensemble_sae.load(folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    for overwrite in (False, True):  # what no export wrote is never replaced
        with pytest.raises(UserError, match="already"):
            export(run, [0], "saelens", tmp_path / "out", overwrite=overwrite)
        assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    (first,) = export(run, [0], "saelens", tmp_path / "export")
    before = (first / "sae_weights.safetensors").read_bytes()
    with pytest.raises(UserError, match="already"):
        export(run, [1], "saelens", first)
    export(run, [1], "saelens", first, overwrite=True)
    assert (first / "sae_weights.safetensors").read_bytes() != before


def test_half_an_export_is_never_there(folder: Path, tmp_path: Path, monkeypatch) -> None:
    run = ensemble_sae.load(folder)
    real, calls = FORMATS["saelens"].write, []

    def failing(*arguments) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("disk full")
        real(*arguments)

    monkeypatch.setattr(FORMATS["saelens"], "write", failing)
    with pytest.raises(OSError, match="disk full"):
        export(run, [0, 1], "saelens", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--member", "1", "--to", "saelen"], "did you mean 'saelens'"),
        (["--to", "saelens"], "--pareto"),
        (["--member", "1", "--pareto", "--to", "saelens"], "--pareto"),
        (["--member", "77", "--to", "saelens"], "no such member"),
        (["--member", "1", "--to", "sparsify"], "signature topk"),
        (["--member", "5", "--to", "saelens"], "several hook points"),
    ],
)
def test_what_makes_no_sense_is_said(folder, tmp_path, run_command, arguments, said) -> None:
    shown = run_command(folder, *arguments, "--out", tmp_path / "out")
    assert shown.exit_code == 2, shown.output
    assert said in shown.output
    assert not (tmp_path / "out").exists()


def test_pushing(folder: Path, tmp_path: Path, run_command, monkeypatch) -> None:
    import huggingface_hub

    sent = []

    class Api:
        def create_repo(self, repository: str, exist_ok: bool) -> None:
            sent.append(repository)

        def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns=None) -> str:
            sent.append((repo_id, Path(folder_path).name, allow_patterns))
            return "https://huggingface.co/user/repo"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    given = (folder, "--member", 0, "--to", "saelens", "--out", tmp_path / "out")
    shown = run_command(*given, "--push", "user/repo")
    assert shown.exit_code == 0, shown.output
    assert sent == ["user/repo", ("user/repo", "out", None)]
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "secret.txt").write_text("not for everybody")
    pareto = (folder, "--pareto", "--to", "saelens", "--out", tmp_path / "both")
    assert run_command(*pareto, "--push", "user/repo").exit_code == 0
    written = [path.name for path in sorted((tmp_path / "both").iterdir()) if path.is_dir()]
    assert sorted(sent[-1][2]) == [f"{name}/**" for name in written]

    def offline(self, *arguments, **more):
        raise OSError("no network")

    monkeypatch.setattr(Api, "create_repo", offline)
    shown = run_command(*given, "--push", "user/repo", "--overwrite")
    assert shown.exit_code == 2
    assert "hf auth login" in shown.output
    assert (tmp_path / "out" / "cfg.json").is_file()


def test_a_run_whose_rows_were_brought_along(folder: Path, tmp_path: Path) -> None:
    """Nobody knows the model: the export works, without its name."""
    sweep = json.loads((folder / "sweep.json").read_text())
    sweep["stores"] = {}
    sweep["sweep"]["activations"]["recipe"] = None
    (folder / "sweep.json").write_text(json.dumps(sweep))
    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    (path,) = export(ensemble_sae.load(folder), [0], "saelens", tmp_path / "out")
    assert "model_name" not in json.loads((path / "cfg.json").read_text())["metadata"]
