"""`ensemble-sae info`: what is installed, and what a run is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import ensemble_sae
from ensemble_sae.config import builtin
from ensemble_sae.run import Layout


def set_status(folder: Path, **values: object) -> None:
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | values))


def test_what_is_installed(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ensemble_sae.ChunkStore.write(tmp_path / "data/mine", torch.randn(40, 6), chunk_rows=20)
    (tmp_path / "data/broken").mkdir()
    (tmp_path / "data/broken/meta.json").write_text("{")
    words = ("info", "--data-dir", "data")
    found, shown = call(*words, "--json").json, call(*words).stdout
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["ensemble-sae"] == ensemble_sae.__version__
    assert list(found["sweeps"]) == builtin.names("sweeps")
    assert list(found["activations"]) == builtin.names("activations")
    assert all(found["sweeps"].values())
    (store,) = found["data"]["stores"]
    assert (store["rows"], store["d_activation"], store["complete"]) == (40, 6, True)
    assert found["devices"][0]["memory"] > 0
    for word in ("mine", "40 rows", "zoo", "ensemble-sae sweep", "numba", "torch"):
        assert word in shown


def test_what_a_run_is(call, folder: Path) -> None:
    shutil.rmtree(folder / "report", ignore_errors=True)
    done = call("info", folder, "--json")
    assert done.exit_code == 0
    found, run = done.json, ensemble_sae.load(folder)
    table = run.members
    assert (found["status"], found["members"]["count"]) == ("finished", 6)
    assert found["members"]["signatures"] == {"untied": 3, "tied": 2, "transcoder": 1}
    assert found["members"]["n_dict"] == [48, 64, 96, 112]
    assert found["members"]["pareto"] == table["pareto"].sum()
    assert [c["step"] for c in found["checkpoints"]] == [c.step for c in run.checkpoints]
    sizes = {p.name: sum(f.stat().st_size for f in p.rglob("*")) for p in folder.iterdir()}
    assert found["bytes"]["features"] == sizes["features"]
    assert found["bytes"]["members.json"] == (folder / "members.json").stat().st_size
    for best in found["best"]:
        same = table[(table["hook"] == best["hook"]) & ~table["status"].str.startswith("frozen")]
        if best["l0_at_most"] is not None:
            same = same[same["l0"] <= best["l0_at_most"]]
        assert best["fvu"] == same["fvu"].min()
        assert table.loc[best["id"], "fvu"] == best["fvu"]
    assert {best["hook"] for best in found["best"]} == set(table["hook"])
    assert (found["evaluated"], found["interpreted"], found["report"]) == (0, [], None)
    assert [command.split()[1] for command in found["next"]] == [
        "report",
        "evaluate",
        "interpret",
        "export",
    ]


def test_what_is_shown_of_it(call, folder: Path) -> None:
    shown = call("info", folder).stdout
    assert f"{folder}: finished" in shown.replace("\n", " ")
    for word in ("6: 3 untied, 2 tied", "48 to 112 features", "step ", "FVU", "Next:"):
        assert word in shown
    assert "evaluated:" not in shown
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report/index.html").touch()
    call("evaluate", folder, "--members", "0", "--rows", "60")
    found = call("info", folder, "--json").json
    assert found["evaluated"] == 1
    assert [command.split()[1] for command in found["next"]] == ["interpret", "export"]
    assert "evaluated:   1 of 6" in call("info", folder).stdout


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_a_run_that_is_not_finished(call, folder: Path, status: str) -> None:
    set_status(folder, status=status)
    (folder / "metrics.parquet").unlink()
    shutil.rmtree(folder / "checkpoints")
    found = call("info", folder, "--json").json
    assert found["status"] == ("stopped" if status == "running" else status)
    assert found["best"] == []
    assert found["members"]["pareto"] is None
    assert found["next"] == [f"ensemble-sae sweep --run {folder} --resume"]
    assert "none yet" in call("info", folder).stdout
    if status == "running":
        with Layout(folder).locked():
            found = call("info", folder, "--json").json
        assert (found["status"], found["next"]) == ("running", [])


def test_frozen_members_are_named(call, folder: Path) -> None:
    table = ensemble_sae.load(folder).members.reset_index()
    table.loc[[1, 3], "status"] = ["frozen at step 3", "frozen at step 70"]
    table["flags"] = ["", "opposite pairs, near-identity", "", "near-identity", "", ""]
    table.to_parquet(folder / "metrics.parquet", index=False)
    found = call("info", folder, "--json").json["members"]
    assert found["frozen"] == [1, 3]
    assert found["status"] == {"trained": 4, "frozen": 2}
    assert found["flags"] == {"near-identity": 2, "opposite pairs": 1}
    assert "members 1, 3" in call("info", folder).stdout


def test_what_is_damaged_is_said(call, folder: Path) -> None:
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation/table.parquet").write_bytes(b"PAR1")
    (folder / "evaluation/settings.json").write_text('{"references": {}, "bands": []}')
    done = call("info", folder, "--json")
    assert done.exit_code == 0
    (damaged,) = done.json["damaged"]
    assert "table.parquet" in damaged
