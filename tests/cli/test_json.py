"""`--json`: one JSON object on stdout, whatever happens, and all that is for people on stderr."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import ensemble_sae
from ensemble_sae import terminal
from ensemble_sae.errors import UserError, WorkerFailed
from ensemble_sae.terminal import Ended, as_json, end

SWEEP = """
[activations]
store = "{rows}"
[train]
batch_size = 32
[grid]
signature = ["tied", "untied"]
n_dict = 8
l1 = 1e-2
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    ensemble_sae.ChunkStore.write("rows", torch.randn(320, 4), chunk_rows=64, held_out=0.2)
    Path("mine.toml").write_text(SWEEP.format(rows="rows"), encoding="utf-8")
    return tmp_path


def test_a_sweep(call, sweep: Path) -> None:
    done = call("sweep", "mine.toml", "--devices", "cpu:1", "--wandb", "off", "--json")
    assert done.exit_code == 0, done.stderr
    found, run = done.json, ensemble_sae.load("runs/mine")
    assert (found["run"], found["status"]) == ("runs/mine", "finished")
    assert [row["id"] for row in found["members"]] == [0, 1]
    for row in found["members"]:
        table = run.members.loc[row["id"]]
        for name in ("name", "fvu", "l0", "dead", "pareto", "status"):
            assert row[name] == table[name]
        assert row["grad_clip"] is None  # NaN in the table
    assert "Pareto-best" in done.stderr
    again = call("sweep", "mine.toml", "--run", "runs/mine", "--json")
    assert again.exit_code == 2
    assert again.json["error"]["where"] == "runs/mine"


def test_a_dry_run(call, sweep: Path) -> None:
    words = ("sweep", "mine.toml", "--devices", "cpu:2", "--dry-run")
    shown, done = call(*words), call(*words, "--json")
    assert (shown.exit_code, done.exit_code) == (0, 0)
    found = done.json
    assert found["members"] == 2
    assert found["rows"] == 256
    assert found["steps"] == 8
    untied = 2 * 4 * 8 + 8  # encoder, decoder and bias
    assert found["parameters"] == untied + 4 * 8 + 8
    assert [sum(part["members"] for part in g["on"]) for g in found["groups"]] == [1, 1]
    assert [device["device"] for device in found["devices"]] == ["cpu:0", "cpu:1"]
    low, high = found["minutes"]
    assert 0 < low <= high
    assert "Sweep mine: 2 members" in shown.stdout
    assert f"{found['parameters']} parameters; 256 training rows on disk" in shown.stdout
    assert not (sweep / "runs").exists()


def test_rows_from_files(call, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
    np.save(tmp_path / "a.npy", rows)
    words = ("--from-npy", tmp_path / "a.npy", "--name", "mine", "--held-out", "0.25")
    done = call("harvest", *words, "--data-dir", tmp_path / "data", "--chunk-rows", 10, "--json")
    assert done.exit_code == 0, done.stderr
    (store,) = done.json["stores"]
    assert (store["rows"], store["held_out"], store["d_activation"]) == (30, 10, 3)
    assert store["path"] == str(tmp_path / "data" / "mine" / "activations")
    kept = ensemble_sae.ChunkStore.open(store["path"])
    assert store["mean"] == pytest.approx(float(kept.mean.norm()))


def test_an_export(call, folder: Path, tmp_path: Path) -> None:
    run = ensemble_sae.load(folder)
    best = [int(m) for m in run.members.index[run.members["pareto"]]]
    words = ("--pareto", "--to", "saelens", "--out", tmp_path / "out", "--json")
    done = call("export", folder, *words)
    assert done.exit_code == 0, done.stderr
    found = done.json
    assert sorted(map(str, (tmp_path / "out").iterdir())) == sorted(found["written"])
    assert len(found["written"]) + len(found["left_out"]) == len(best)
    assert all("several hook points" in item["why"] for item in found["left_out"])
    assert found["pushed"] is None
    assert "Load it with" in done.stderr


def test_an_evaluation(call, folder: Path) -> None:
    done = call("evaluate", folder, "--members", "0,2", "--rows", "60", "--json")
    assert done.exit_code == 0, done.stderr
    found, table = done.json, ensemble_sae.load(folder).evaluation.members
    assert [row["member"] for row in found["members"]] == [0, 2]
    for row in found["members"]:
        assert row["ce"] == table.loc[row["member"], "ce"]
        assert row["name"] == ensemble_sae.load(folder).configurations[row["member"]].name
    assert found["settings"]["references"].keys() == {"blocks.2.hook_resid_pre"}
    assert "members evaluated" in done.stderr
    again = call("evaluate", folder, "--members", "2", "--rows", "60", "--json").json
    assert [row["member"] for row in again["members"]] == [2]


@pytest.mark.parametrize("name", ["evaluate", "interpret", "info"])
def test_mistakes_of_people(call, tmp_path: Path, name: str) -> None:
    done = call(name, tmp_path / "none", "--json")
    assert done.exit_code == 2
    assert done.json == {
        "error": {
            "what": "There is no run in this folder.",
            "where": str(tmp_path / "none"),
            "found": "no such folder",
            "allowed": None,
            "next_step": "python -m ensemble_sae.big_sweep --run FOLDER",
        }
    }
    assert "error: There is no run in this folder." in done.stderr
    assert call(name, tmp_path / "none").stdout == ""


@pytest.mark.parametrize(
    ("words", "where", "said"),
    [
        (["evaluate", "run", "--rowz", "3", "--json"], "ensemble-sae evaluate", "--rowz"),
        (["evaluate", "run", "--rows", "x", "--json"], "ensemble-sae evaluate", "--rows"),
        (["evaluate", "--json"], "ensemble-sae evaluate", "argument"),
        (["evaluat", "--json"], "ensemble-sae", "'evaluat'"),
    ],
)
def test_lines_that_are_not_understood(call, words, where, said) -> None:
    done = call(*words)
    assert done.exit_code == 2
    assert said in done.json["error"]["what"]
    assert done.json["error"]["where"] == where
    assert "Traceback" not in done.stderr
    plain = call(*words[:-1])
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert where in plain.stderr


# --- the mechanism itself


def ended(work, capfd) -> tuple[int, dict]:
    with pytest.raises(typer.Exit) as caught:
        end(work, for_scripts=True)
    out, err = capfd.readouterr()
    assert type(caught.value.exit_code) is int
    return caught.value.exit_code, json.loads(out) | {"stderr": err}


def test_everything_else_goes_to_stderr(capfd) -> None:
    def work() -> int:
        print("python")
        typer.echo("typer")
        os.write(1, b"descriptor\n")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
        return Ended(0, path=Path("a") / "b")

    code, found = ended(work, capfd)
    assert code == 0
    assert sorted(found["stderr"].split()) == ["child", "descriptor", "python", "typer"]
    assert found["path"] == "a/b"
    print("back")
    os.write(1, b"again\n")
    assert sorted(capfd.readouterr().out.split()) == ["again", "back"]


def interrupted() -> int:
    raise KeyboardInterrupt


def failed() -> int:
    raise WorkerFailed("A worker died.", where="cpu:0")


@pytest.mark.parametrize(
    ("work", "code", "found"),
    [
        (lambda: 0, 0, {}),
        (lambda: Ended(7, a=math.nan, b=[math.inf, 1.5]), 7, {"a": None, "b": [None, 1.5]}),
        (interrupted, 130, {"interrupted": True}),
    ],
)
def test_ends(work, code, found, capfd) -> None:
    got_code, got = ended(work, capfd)
    got.pop("stderr")
    assert (got_code, got) == (code, found)


def test_errors_keep_their_code(capfd) -> None:
    code, found = ended(failed, capfd)
    assert code == 3
    assert found["error"]["where"] == "cpu:0"
    assert "error: A worker died." in found["stderr"]
    with pytest.raises(typer.Exit) as caught:
        end(failed)
    assert caught.value.exit_code == 3
    out, err = capfd.readouterr()
    assert (out, err) == ("", "error: A worker died.\n  where:   cpu:0\n")


def test_a_bug_is_no_answer(capfd) -> None:
    with pytest.raises(ZeroDivisionError):
        end(lambda: 1 // 0, for_scripts=True)
    assert capfd.readouterr().out == ""


def test_values() -> None:
    given = {
        1: np.float32(0.5),
        "bool": np.bool_(True),
        "array": np.array([[1, 2], [3, 4]]),
        "nan": np.array([1.0, np.nan]),
        "tuple": (Path("x"), None, "é"),
    }
    assert as_json(given) == {
        "1": 0.5,
        "bool": True,
        "array": [[1, 2], [3, 4]],
        "nan": [1.0, None],
        "tuple": ["x", None, "é"],
    }
    assert json.loads(json.dumps(as_json(given), allow_nan=False)) == as_json(given)


def test_an_exit_code_is_a_number() -> None:
    assert Ended(130, a=1) == 130
    assert Ended(0).found == {}
    assert set(terminal._parts(UserError("w"))) == {
        "what",
        "where",
        "found",
        "allowed",
        "next_step",
    }
