"""`python -m ensemble_sae.evaluate`: which members, what is printed, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ensemble_sae import evaluate as command
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError
from ensemble_sae.evaluation import passing, stage
from ensemble_sae.evaluation.command import chosen, execute
from ensemble_sae.evaluation.request import ROWS, Request
from ensemble_sae.run import load


@pytest.fixture(autouse=True)
def settled(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "load_model", lambda *_: bridge)
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, list(arguments))


def set_pareto(folder: Path, values: list[bool]) -> None:
    table = load(folder).members.assign(pareto=values)
    table.reset_index().to_parquet(folder / "metrics.parquet", index=False)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (None, None),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("3", [3]),
        ("3,1", [1, 3]),
        ("0-2,4,2-3", [0, 1, 2, 3, 4]),
        ("5-5", [5]),
        ("8-9", [8, 9]),  # that there are none is told when they are looked for
    ],
)
def test_members_by_their_ids(trained, text, members):
    assert chosen(load(trained), text) == members


@pytest.mark.parametrize("text", ["", "x", "1,", "3-1", "-2", "2-", "1.5", "1-2-3", "All"])
def test_members_that_make_no_sense(trained, text):
    with pytest.raises(UserError, match=r"Which members[\s\S]*ids such as 3,8-12"):
        chosen(load(trained), text)


def test_those_that_are_pareto_best(folder):
    set_pareto(folder, [False, True, False, False, True, True])
    assert chosen(load(folder), "pareto") == [1, 4, 5]
    (folder / "metrics.parquet").unlink()
    with pytest.raises(UserError, match=r"before the run is finished[\s\S]*--members all"):
        chosen(load(folder), "pareto")


def test_a_table_of_those_that_were_asked_for(folder):
    set_pareto(folder, [True, False, False, False, False, False])
    done = call(str(folder), "--members", "1,0", "--rows", "80", "--keep", "frequent:9")
    assert done.exit_code == 0, done.output
    found = load(folder).evaluation
    for member in (0, 1):
        for features in ("all", "frequent:9"):
            table = found.table.set_index(["member", "features"])
            own = table.loc[(member, features)]
            cells = [f"{own['ce']:.4f}", f"{own['ce_recovered']:.4f}", f"{own['fvu']:.4f}"]
            assert any(all(cell in line for cell in cells) for line in done.output.splitlines())
    assert "2 members evaluated" in done.output
    known = found.references["blocks.2.hook_resid_pre"]
    assert f"clean {known['ce_clean']:.4f}" in done.output
    assert "identity dictionary 1.0000, zero dictionary 0.0000" in done.output
    again = call(str(folder), "--members", "1", "--rows", "80", "--keep", "frequent:9")
    assert "nothing to do" in again.output
    assert "1 of them shown" in again.output
    assert f" {run_names(folder, 1)} " in again.output
    assert f" {run_names(folder, 0)} " not in again.output


def run_names(folder: Path, member: int) -> str:
    return load(folder).configurations[member].name


def test_all_are_printed_by_their_frontier(folder):
    set_pareto(folder, [True, False, False, True, False, False])
    done = call(str(folder), "--rows", "60", "--members", "all")
    assert done.exit_code == 0, done.output
    assert "4 members evaluated, the 2 Pareto-best of them" in done.output
    assert done.output.count(": 1 member evaluated") == 2  # no frontier: all of them
    assert run_names(folder, 5) in done.output
    positions = [done.output.index(name) for name in (run_names(folder, 3), run_names(folder, 0))]
    l0 = load(folder).evaluation.members["l0"]
    assert (positions[0] < positions[1]) == (l0[3] < l0[0])


def test_an_unfinished_run_is_printed_too(folder):
    (folder / "metrics.parquet").unlink()
    done = call(str(folder), "--rows", "60", "--members", "0")
    assert done.exit_code == 0, done.output
    assert run_names(folder, 0) in done.output
    assert "1 member evaluated" in done.output


def test_interrupted(folder, monkeypatch, capsys):
    def interrupt(self: Any, *args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(passing.Pass, "batch", interrupt)
        assert execute(folder, "0", Request(rows=60)) == 130
    assert "goes on where this one stopped" in capsys.readouterr().out
    assert execute(folder, "0", Request(rows=60)) == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "synthetic"}, "These rows are synthetic"),
        (None, "--model MODEL --dataset DATASET"),
    ],
)
def test_rows_of_no_language_model(folder, tmp_path, source, said):
    from torch import randn

    ChunkStore.write(tmp_path / "s", randn(40, 128), chunk_rows=32, source=source)
    facts = json.loads((folder / "sweep.json").read_text())
    facts["stores"] = dict.fromkeys(facts["stores"], str(tmp_path / "s"))
    (folder / "sweep.json").write_text(json.dumps(facts))
    done = call(str(folder))
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (folder / "evaluation").exists()


def test_no_run(tmp_path):
    done = call(str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "no run in this folder" in done.stderr


def test_the_default_is_told_by_the_help():
    assert f"{ROWS}" in call("--help").output.replace(",", "")
