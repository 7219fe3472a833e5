"""The comparison runs, with a stand-in for the peers: nothing is installed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import compared
import environments
import peers

STAND_IN = f"""
import sys, time
sys.path.insert(0, {str(Path(compared.__file__).parent)!r})
from turns import Turns

print("libraries print things")
turns = Turns("numpy")
for batch in turns:
    assert batch.shape == (turns.job["batch"], turns.job["d"])
    time.sleep(0.05)
"""
# Speaks as `Turns` does, without the seconds that torch takes to load
SPEAKER = """
import json, os, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
said = {"ready": {}, "settings": os.environ.get("GLIBC_TUNABLES"), "threads": job["threads"]}
print(json.dumps(said), flush=True)
for number, line in enumerate(sys.stdin):
    if number == job.get("fails_at"):
        sys.exit("out of memory, say")
    print("turn", json.dumps({"seconds": 0}))
    print(json.dumps({"seconds": float(line.removeprefix("turn "))}), flush=True)
"""
NOWHERE = environments.Environment("nowhere", ("no-such-package",))
ELSEWHERE = environments.Environment("elsewhere", ())


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    script = tmp_path / "run_stand_in.py"
    script.write_text(STAND_IN, encoding="utf-8")
    return script


def python_of(wanted: environments.Environment, say: Any) -> str:
    if wanted == NOWHERE:
        raise environments.NotInstalled("ERROR: no matching distribution")
    return sys.executable


def test_peers_take_turns_with_ours_and_results_are_written(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    field = [
        peers.Peer("steady", ELSEWHERE, "numpy", stand_in, (peers.RELU,)),
        peers.Peer("absent", NOWHERE, "numpy", stand_in, (peers.TOPK,)),
    ]
    monkeypatch.setattr(peers, "PEERS", field)
    monkeypatch.setattr(peers, "python_of", python_of)
    peers.main(["--tiny", "--rounds", "2", "--threads", "1", "--out", str(tmp_path)])

    report = json.loads((tmp_path / "peers.json").read_text())
    assert report["notes"] == ["absent left out: not installed: ERROR: no matching distribution"]
    assert [(row["peer"], row["allocator"], row["ours"]) for row in report["ratios"]] == [
        ("steady", "own", peers.RELU),
        ("steady", "ours", peers.RELU),
    ]
    for row in report["ratios"]:
        assert row["peer_ms"] >= 50  # a step sleeps so long
        first, middle, third = row["ratio"]
        assert first <= middle <= third
    assert {turn["name"]: len(turn["seconds"]) for turn in report["turns"]} == {
        peers.RELU: 2,
        "steady": 2,
    }
    assert report["active"][peers.RELU] == pytest.approx(0.02, abs=0.015)

    page = (tmp_path / "peers.md").read_text()
    assert "python benchmarks/peers.py --tiny --rounds 2 --threads 1" in page
    assert f"torch {torch.__version__}" in page
    assert page.count("| steady |") == 2
    assert "absent left out" in page
    assert "absent left out" in capsys.readouterr().out
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "peers.svg").getroot().tag.endswith("svg")


def test_each_gets_its_allocator_and_one_that_ends_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=1")
    script = tmp_path / "speaker.py"
    script.write_text(SPEAKER, encoding="utf-8")
    field = [
        peers.Contestant("steady", "ours", sys.executable, script, {}),
        peers.Contestant("brittle", "own", sys.executable, script, {"fails_at": 3}),
    ]
    with peers.Field(field, {"threads": 7}, tmp_path) as started:
        started.get_ready(str)
        turns = started.take_turns(4, 3, str)
    assert started.facts["steady", "ours"]["settings"] == peers.ALLOCATOR
    assert started.facts["brittle", "own"]["settings"] is None
    assert started.facts["brittle", "own"]["threads"] == 7
    assert turns == {("steady", "ours"): [1.0, 1.0, 1.0]}  # per step; the first turn is not there
    assert started.notes == ["brittle, as it comes, left out: out of memory, say"]


def test_ours_must_not_end(tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text("raise SystemExit('told why')", encoding="utf-8")
    ours = peers.Contestant(peers.RELU, "ours", sys.executable, script, {})
    with (
        peers.Field([ours], {"threads": 1}, tmp_path) as started,
        pytest.raises(peers.Gone, match="told why"),
    ):
        started.get_ready(str)


def test_without_any_peer_there_is_a_page_and_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(peers, "PEERS", [peers.Peer("absent", NOWHERE, "x", tmp_path, ())])
    monkeypatch.setattr(peers, "python_of", python_of)
    peers.main(["--tiny", "--out", str(tmp_path)])
    assert "absent left out" in (tmp_path / "peers.md").read_text()
    assert "No figure" in capsys.readouterr().out
    assert not (tmp_path / "peers.png").exists()


def test_an_environment_is_made_once_and_again_for_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            python = Path(command[-1], "bin", "python")
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()

    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments.subprocess, "run", run)
    wanted = environments.Environment("some", ("thing==1",), unwanted=("other",))
    python = environments.python_of(wanted, str)
    assert python.startswith(str(tmp_path / "some"))
    _, torch_first, thing, removal = commands
    assert torch_first[-1] == environments.TORCH
    assert thing[-2:] == [environments.TORCH, "thing==1"]
    assert removal[-1] == "other"

    assert environments.python_of(wanted, str) == python
    assert len(commands) == 4
    environments.python_of(environments.Environment("some", ("thing==2",)), str)
    assert len(commands) == 7


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (
            subprocess.CalledProcessError(1, "pip", stderr="ERROR: no such thing\n[notice]"),
            "no such",
        ),
        (subprocess.TimeoutExpired("pip", 3600), "timed out"),
        (FileNotFoundError("no pip"), "no pip"),
    ],
)
def test_why_an_environment_could_not_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, told: str
) -> None:
    def run(command: list[str], **_: Any) -> None:
        raise failure

    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments.subprocess, "run", run)
    with pytest.raises(environments.NotInstalled, match=told):
        environments.python_of(NOWHERE, str)


def test_the_table_shows_every_comparison() -> None:
    row = {
        "peer": "some",
        "version": "1.0",
        "allocator": "own",
        "ours": "topk",
        "peer_ms": 1234.5,
        "ours_ms": 500.0,
        "ratio": [2.4, 2.469, 2.5],
    }
    (found,) = compared.table({"ratios": [row]}).rows
    assert found == [
        "some", "1.0", "as it comes", "topk", "1,234.5", "500.0", "2.47x", "2.40 to 2.50",
    ]  # fmt: skip
