"""Training while the harvest goes on, and deleting what is used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slow
import small
from filelock import FileLock

import ensemble_sae
from ensemble_sae.data.location import store_path
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.engine import harvesting
from ensemble_sae.engine.run_sweep import Interrupted
from ensemble_sae.engine.signals import Stopped
from ensemble_sae.errors import UserError
from ensemble_sae.run import Run
from ensemble_sae.sweep import load_sweep

RECIPE = """
kind = "synthetic"
name = "little"
hooks = ["uncorrelated"]
d_activation = 8
n_features = 16
mean_active = 3
rows = 3_200
chunk_rows = 256
held_out = 0.1
"""
SWEEP = """
name = "streamed"
activations = {{ recipe = "{recipe}", normalise = "standard" }}
train = {{ batch_size = 32 }}
[grid]
signature = ["traps:Trapped", "untied"]
n_dict = 16
l1 = [1e-3, 1e-2]
"""


@pytest.fixture(autouse=True)
def _slow_harvest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvesting, "_harvest", slow.harvest)


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "little.toml").write_text(RECIPE, encoding="utf-8")
    sweep = folder / "streamed.toml"
    sweep.write_text(SWEEP.format(recipe=folder / "little.toml"), encoding="utf-8")
    return sweep


def store_in(folder: Path) -> ChunkStore:
    return ChunkStore.open(store_path(folder / "data", "little", "uncorrelated"))


def train(folder: Path, run: str = "run", **options: object) -> Run:
    data_dir = folder / "data"
    return small.train(folder / "streamed.toml", folder / run, data_dir=data_dir, **options)


@pytest.fixture(scope="session")
def streamed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Run:
    """The sweep, undisturbed, beside the harvest."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "streamed"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            write(folder)
            unfinished: list[bool] = []
            watch = small.Watch(
                saved=lambda _: unfinished.append(not store_in(folder).meta.complete)
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(harvesting, "_harvest", slow.harvest)
                patch.setenv("HARVEST_PAUSE_S", "1.0")
                train(folder, stream=True, observer=watch)
            assert unfinished[0], "a chunk is trained on before the last one is there"
            assert len(unfinished) == len(store_in(folder).chunks())
    return ensemble_sae.load(folder / "run", {"traps:Trapped": small.traps.Trapped})


def test_stream_after_the_fact_is_the_same(streamed: Run) -> None:
    found = train(streamed.path.parent, "again", stream=True)
    small.assert_same_bits(found, streamed)


def test_a_stream_that_is_interrupted_twice(
    streamed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed beside the harvest, then without `stream`: the order is the run's, not the call's."""
    write(tmp_path)
    monkeypatch.setenv("TRAP", "SIGINT@12")
    monkeypatch.setenv("HARVEST_PAUSE_S", "1.5")
    with pytest.raises(Interrupted):
        train(tmp_path, stream=True)
    assert not store_in(tmp_path).meta.complete
    with pytest.raises(Interrupted):
        train(tmp_path, stream=True, resume=True)
    monkeypatch.setenv("TRAP", "")
    found = train(tmp_path, resume=True)
    small.assert_same_bits(found, streamed)


def test_discard(streamed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setenv("TRAP", "SIGTERM@36")
    monkeypatch.setenv("HARVEST_PAUSE_S", "1.5")
    with pytest.raises(Interrupted):
        train(tmp_path, stream=True, discard=True)
    store = store_in(tmp_path)
    there = [(store.path / chunk.file).exists() for chunk in store.chunks()]
    assert not store.meta.complete
    assert there[:4] == [False] * 4, "both checkpoints that are kept lie behind these"
    assert all(there[4:])
    assert len(there) > 4
    monkeypatch.setenv("TRAP", "")
    monkeypatch.setenv("HARVEST_PAUSE_S", "0.1")
    found = train(tmp_path, stream=True, discard=True, resume=True)
    small.assert_same_bits(found, streamed)
    store = store_in(tmp_path)
    assert store.meta.complete
    assert not any((store.path / chunk.file).exists() for chunk in store.chunks())
    assert all((store.path / chunk.file).exists() for chunk in store.chunks(held_out=True))
    with pytest.raises(UserError, match=r"(?s)discarded.*chunk-0.*--overwrite"):
        train(tmp_path, "other")
    again = train(tmp_path, stream=True, resume=True)
    assert again.status["status"] == "finished"


def test_discard_is_for_one_pass_over_what_can_be_made_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    twice, _ = load_sweep(path, ("train.epochs=2",))
    with pytest.raises(UserError, match="epochs"):
        small.train(twice, tmp_path / "run", stream=True, discard=True)
    members = [{"signature": "tied", "n_dict": 4}]
    with pytest.raises(UserError, match="recipe"):
        ensemble_sae.run_sweep(members, activations={"store": "mine"}, discard=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_harvest(tmp_path: Path, number: int) -> None:
    write(tmp_path)
    watch = small.Watch(harvesting=lambda _: os.kill(os.getpid(), number))
    with pytest.raises(Stopped) as error:
        train(tmp_path, observer=watch)
    assert error.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


SCRIPT = """
import slow
from pathlib import Path
from ensemble_sae.engine import harvesting
from ensemble_sae.engine.run_sweep import run_sweep
from ensemble_sae.sweep import load_sweep

if __name__ == "__main__":
    harvesting._harvest = slow.harvest
    run_sweep(load_sweep(Path("streamed.toml"))[0], run="run", devices="cpu:1", stream=True,
              data_dir="data")
"""


def test_kill_9_leaves_no_harvest_behind(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    here = [str(Path(slow.__file__).parent), str(small.HERE), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, here)),
            "TRAP": "SIGKILL@9",
            "HARVEST_PAUSE_S": "5",
        },
        start_new_session=True,
    )
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert small.orphans(process.pid) == []
