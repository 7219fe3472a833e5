"""What wandb is sent, by a process of its own, and that it may fail as it likes."""

from __future__ import annotations

import json
import math
import struct
import time
from pathlib import Path

import pandas as pd
import pytest

from ensemble_sae.engine import wandb_child, wandb_log
from ensemble_sae.engine.wandb_child import Metrics
from ensemble_sae.engine.wandb_log import WandbLog, resolve_mode
from ensemble_sae.engine.wandb_runs import Notes, Runs, Sweep, distinct, plain, series_name
from ensemble_sae.errors import UserError
from ensemble_sae.run.metrics import MetricsLog

NAMES = ["tied l1=1.0e-3 r=2 bd=0", "tied l1=2.1e-2 r=0.5 bd=0", "mine/own k=4"]
KEY = "0123456789" * 4


def row(member, number, **values):
    at = {"round": number, "step": 10 * (number + 1), "member": member}
    return {**at, "loss": 1.0, "mse": 0.5, "fvu": 0.1 + member, "l0": 2.0, **values}


@pytest.fixture
def folder(tmp_path):
    """A run's folder after three rounds and its evaluation."""
    run = tmp_path / "my run"
    run.mkdir()
    sweep = {"name": "mine", "train": {"lr": 0.01}}
    members = [
        {
            "id": id,
            "name": name,
            "hook": "h",
            "hyperparameters": {"l1": 1e-3},
            "dynamics": {},
        }
        for id, name in enumerate(NAMES)
    ]
    facts = {"versions": {"torch": "2"}, "hardware": "cpu", "devices": ["cpu:0"], "threads": [1]}
    (run / "sweep.json").write_text(json.dumps({"sweep": sweep, "stores": {"h": "rows"}}))
    (run / "members.json").write_text(json.dumps({"members": members}))
    (run / "run.json").write_text(json.dumps(facts))
    log = MetricsLog(run / "metrics.jsonl")
    for number in range(3):
        log.append([row(member, number) for member in range(3)])
    table = pd.DataFrame(
        {
            "id": [0, 1, 2],
            "name": NAMES,
            "hook": "h",
            "status": ["trained", "trained", "frozen at step 3"],
            "fvu": [0.2, 0.1, math.nan],
            "l0": [3.0, 5.0, math.nan],
            "dead": [0.0, 0.5, math.nan],
            "pareto": [True, True, False],
            "density_histogram": [[1, 2], [3, 4], None],
        }
    )
    table.to_parquet(run / "metrics.parquet", index=False)
    page = run / "report" / "index.html"
    page.parent.mkdir()
    page.write_text("<p>the report</p>")
    return run


def play(folder, warn, rounds=(0, 1, 2), mode="offline", whole=True):
    """What a sweep tells its observer."""
    log = WandbLog(mode, "project", warn)
    log.opened(folder)
    log.started(None, rows=100, work=100, done=0)
    log.progress(10, 40, {})
    for number in rounds:
        log.round_done(number, [])
    if whole:
        log.finished(None)
        log.reported(folder / "report" / "index.html")
    log.ended()


# with the real wandb, offline


def records(folder):
    """What wandb wrote: LevelDB's log format, protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            if kind == 0:
                break
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                record = Record()
                record.ParseFromString(whole)
                yield record
                whole = b""


def history(folder):
    found = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            found.append((record.history.step.num, values))
    return found


def test_an_interrupted_sweep_goes_on_in_the_same_wandb_run(folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "online")  # what this was started with says otherwise
    warnings = []
    play(folder, warnings.append, rounds=[0, 1], whole=False)
    play(folder, warnings.append, rounds=[1, 2])  # the second is trained again
    assert warnings == []
    kinds = [(r.WhichOneof("record_type"), r) for r in records(folder)]
    runs = [r.run for kind, r in kinds if kind == "run"]
    assert len({run.run_id for run in runs}) == 1
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2
    assert runs[0].project == "project"
    assert runs[0].display_name == runs[0].run_group == "my run"
    config = {u.key: u.value_json for u in runs[0].config.update}
    assert json.loads(config["sweep"])["train"] == {"lr": 0.01}
    assert {"versions", "hardware"} <= set(config)
    curves = [(step, v) for step, v in history(folder) if "step" in v and "members" not in v]
    assert [(step, values["step"]) for step, values in curves] == [(0, 10), (1, 20), (2, 30)]
    assert curves[0][1]["fvu/tied_l1_2p1em2_r_0p5_bd_0"] == 1.1
    last = history(folder)[-1][1]
    assert {"fvu_against_l0_table", "curves_fvu_table"} <= {k.split("/")[0] for k in last}
    artifacts = {r.artifact.type: r.artifact for kind, r in kinds if kind == "artifact"}
    assert artifacts["report"].name == "report-my-run"
    (entry,) = artifacts["report"].manifest.contents
    assert entry.path == "index.html"
    assert all(KEY.encode() not in p.read_bytes() for p in folder.rglob("*") if p.is_file())


# with a wandb that misbehaves


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a module named wandb before the real one, in the process that follows."""

    def make(text):
        place = tmp_path / "fake"
        place.mkdir()
        (place / "wandb.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(place))

    return make


@pytest.mark.parametrize(
    "text",
    [
        "raise ImportError('broken')",
        "Settings = dict\ndef init(**options): raise ConnectionError('broken')",
        "Settings = dict\ndef init(**options): raise SystemExit('broken')",
        "Settings = dict\n"
        "class Run:\n"
        "    def define_metric(self, *args, **options): pass\n"
        "    def log(self, *args, **options): raise OSError('broken')\n"
        "def init(**options): return Run()",
    ],
)
def test_a_failing_wandb_is_one_warning(folder, fake, text):
    fake(text)
    warnings = []
    play(folder, warnings.append, mode="online")
    assert len(warnings) == 1
    assert "wandb failed and is left out" in warnings[0]
    assert "broken" in warnings[0]


def test_a_process_that_dies_is_one_warning(folder, fake):
    fake("import os\nos._exit(7)")
    warnings = []
    play(folder, warnings.append)
    assert warnings == ["wandb's process ended with code 7 and is left out"]


def test_a_hanging_wandb_is_given_up_and_its_process_ends(folder, fake, monkeypatch):
    fake("import time\nSettings = dict\ndef init(**options): time.sleep(100)")
    monkeypatch.setattr(wandb_log, "PATIENCE_S", 1.0)
    warnings = []
    began = time.monotonic()
    play(folder, warnings.append, rounds=range(20_000))  # more than a pipe holds
    assert time.monotonic() - began < 50
    (warning,) = warnings
    assert "did not finish" in warning


def test_what_began_offline_goes_on_so_until_it_is_synced(folder, fake):
    fake("Settings = dict\ndef init(mode, **options): raise ValueError(f'asked for {mode}')")
    (folder / "wandb.json").write_text('{"project": "p", "rounds": 1, "ids": {}}')
    kept = folder / "wandb" / "offline-run-1-abc" / "run-abc.wandb"
    kept.parent.mkdir(parents=True)
    kept.touch()
    warnings = []
    play(folder, warnings.append, mode="online")
    assert "`wandb sync`" in warnings[0]
    assert "asked for offline" in warnings[1]
    kept.with_suffix(".wandb.synced").touch()
    play(folder, warnings.append, mode="online")
    assert "asked for online" in warnings[2]


def test_rounds_are_read_only_when_they_are_complete(folder):
    metrics = Metrics(folder / "metrics.jsonl")
    assert [n for n, _ in metrics.rounds(1, 2)] == [1]
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"round": 3, "st')
    assert [(n, len(rows)) for n, rows in metrics.rounds(0, 9)] == [(2, 3)]


# what is sent


class FakeRun:
    def __init__(self, name, run_id, config, job_type):
        self.name, self.id, self.config, self.job_type = name, run_id, config, job_type
        self.logged, self.summary, self.finished = [], {}, False

    def define_metric(self, name, step_metric=None):
        pass

    def log(self, values, step=None):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_few_long_members_have_a_wandb_run_each(folder):
    opened = []

    def init(*args):
        opened.append(FakeRun(*args))
        return opened[-1]

    sweep, notes = Sweep.read(folder), Notes.read(folder, "project")
    runs = Runs(sweep, notes, init, each=True)
    rows = Metrics(folder / "metrics.jsonl")
    for number, some in rows.rounds(0, 3):
        runs.log(number, some)
    table = wandb_child._table(folder)
    runs.finish(table, [])
    runs.close()
    whole, *own = opened
    assert whole.job_type == "sweep"
    assert [run.name for run in own] == NAMES
    assert own[0].config["l1"] == 1e-3
    assert own[0].config["sweep"]["train"] == {"lr": 0.01}
    assert [(step, v["step"]) for step, v in own[1].logged] == [(0, 10), (1, 20), (2, 30)]
    assert own[1].summary["held_out/fvu"] == 0.1
    assert own[2].summary["held_out/fvu"] is None
    members = whole.logged[-1][1]["members"]
    assert "density_histogram" not in members.columns
    assert whole.logged[-1][1]["pareto"].data == [
        [0, NAMES[0], "h", 3.0, 0.2, 0.0],
        [1, NAMES[1], "h", 5.0, 0.1, 0.5],
    ]
    assert all(run.finished for run in opened)
    again = Runs(sweep, Notes.read(folder, "another"), init, each=False)  # stays as it began
    assert [run.id for run in opened[4:]] == [run.id for run in opened[:4]]
    assert again._own.keys() == {0, 1, 2}
    assert Notes.read(folder, "another").project == "project"


def test_names_are_safe_and_told_apart():
    assert series_name("tied l1=2.1e-3 r=0.5") == "tied_l1_2p1em3_r_0p5"
    assert series_name("a hook=blocks.2.x -> b/c") == "a_hook_blocks_2_x_b_c"
    made = distinct({0: series_name("a/b"), 1: series_name("a b"), 2: "c"})
    assert made == {0: "a_b_0", 1: "a_b_1", 2: "c"}


def test_columns_of_a_table_have_one_kind_of_value():
    rows = [
        {"a": 1, "b": "x", "c": [1]},
        {"a": 2.5, "b": 3, "c": None},
        {"a": None, "b": None, "c": 1},
    ]
    assert plain(rows) == (["a", "b"], [[1, "x"], [2.5, "3"], [None, None]])


# the mode


@pytest.mark.parametrize(
    ("environment", "netrc", "expected"),
    [
        ({}, None, "offline"),
        ({}, "machine elsewhere.org login user password x", "offline"),
        ({}, f"machine api.wandb.ai login user password {KEY}", "online"),
        (
            {"WANDB_BASE_URL": "https://own.org"},
            f"machine own.org login user password {KEY}",
            "online",
        ),
        ({"WANDB_API_KEY": KEY}, None, "online"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, None, "offline"),
        ({"WANDB_MODE": "disabled"}, None, "off"),
    ],
)
def test_auto_is_online_only_when_logged_in(monkeypatch, tmp_path, environment, netrc, expected):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        file = Path(tmp_path / ".netrc")
        file.write_text(netrc)
        file.chmod(0o600)
    assert resolve_mode("auto") == expected


def test_an_unknown_wandb_mode_lists_the_known_ones():
    with pytest.raises(UserError, match="auto, online, offline, off"):
        resolve_mode("onlin")
