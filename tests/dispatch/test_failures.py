"""What goes wrong during a run is said, with the right exit code, and leaves nothing behind."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path

import pytest
import small
import torch

import ensemble_sae
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import CorruptFile, UserError, WorkerFailed
from ensemble_sae.run import Run
from ensemble_sae.sweep import load_sweep


def nothing_left() -> bool:
    return not [p for p in multiprocessing.active_children() if p.name.startswith("ensemble-sae")]


def test_a_worker_that_always_dies(sweep: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = (sweep, "--devices", "cpu:1", "--threads", "1", "--run", run)
    process = small.command(*words, TRAP="exit@3")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 3, said
    assert "died 3 times" in said
    assert "exit code 7" in said
    assert f"--run {run} --resume" in " ".join(said.split())
    assert small.orphans(process.pid) == []


def test_an_exception_in_a_worker(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that cannot be unpickled."""
    monkeypatch.setenv("TRAP", "odd@20")
    with pytest.raises(WorkerFailed, match=r"traps\.OddError: odd 1 2") as failure:
        small.train(sweep, tmp_path / "run", "cpu:2")
    assert failure.value.exit_code == 3
    assert "--resume" in str(failure.value)
    assert "in _odd" in str(failure.value)
    assert nothing_left()
    loaded = ensemble_sae.load(tmp_path / "run")
    assert loaded.status["status"] == "failed"


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_chunks_that_are_damaged_during_the_run(tmp_path: Path, one_worker: Run) -> None:
    """A flipped bit, a missing and a truncated chunk: named; after a repair the run goes on."""
    small.write_stores(tmp_path / "stores")
    sweep = small.write_sweep(tmp_path)
    store = ChunkStore.open(tmp_path / "stores" / "a")
    chunks = list(dict.fromkeys(one_worker.metrics.query("member == 0")["chunk"]))
    path = store.path / store.meta.chunks[chunks[-1]].file  # that is read last
    whole = path.read_bytes()
    for attempt, damage in enumerate((flip, Path.unlink, cut)):
        watch = small.Watch(started=lambda *_, damage=damage: damage(path))
        with pytest.raises(CorruptFile) as error:
            small.train(sweep, tmp_path / "run", resume=attempt > 0, observer=watch)
        assert str(path) in str(error.value)
        assert error.value.exit_code == 2
        assert nothing_left()
        path.write_bytes(whole)
    found = small.train(sweep, tmp_path / "run", resume=True)
    small.assert_same_bits(found, one_worker)


MEMBERS = """
name = "health"
activations = {{ store = "{store}", hook = "b" }}
train = {{ batch_size = 32 }}
[[members]]
signature = "{signature}"
n_dict = 12
l1 = 1e-3
[[members]]
signature = "{signature}"
n_dict = 12
l1 = 1e-3
lr = {lr}
[[members]]
signature = "{signature}"
n_dict = 12
l1 = 1e-2
"""


@pytest.mark.parametrize("signature", ["untied", "traps:Trapped"])
def test_a_member_that_is_not_finite(shared: Path, tmp_path: Path, signature: str) -> None:
    """It is frozen and named; its neighbours do not notice, on either way to the gradient."""
    runs = []
    watch = small.Watch()
    for lr in ("1e30", "0.002"):
        path = tmp_path / f"{lr}.toml"
        path.write_text(
            MEMBERS.format(store=shared / "stores", signature=signature, lr=lr), encoding="utf-8"
        )
        runs.append(small.train(path, tmp_path / lr, observer=watch))
    sick, well = runs
    ((member, step),) = watch.events("frozen")
    assert member.id == 1
    assert sick.members["status"].tolist() == ["trained", f"frozen at step {step}", "trained"]
    for id in (0, 2):
        for name, tensor in small.states(well)[id].items():
            assert torch.equal(small.states(sick)[id][name], tensor), (id, name)
        assert sick.members.loc[id, "fvu"] == well.members.loc[id, "fvu"]
    for name, tensor in sick.sae(1).params.items():
        assert torch.isfinite(tensor).all(), name
    rows = sick.metrics.query("member == 1")
    assert (rows["frozen_at"] == step).all()
    assert math.isnan(rows["loss"].iloc[-1])


def test_two_runs_at_once_and_a_folder_that_is_taken(
    sweep: Path, tmp_path: Path, one_worker: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        small.train(sweep, one_worker.path)
    layout = ensemble_sae.run.Layout(tmp_path / "busy")
    with layout.locked(), pytest.raises(UserError, match="Another process"):
        small.train(sweep, tmp_path / "busy")
    with pytest.raises(UserError, match="no run to resume"):
        small.train(sweep, tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_resume_of_a_finished_run_and_with_another_sweep(sweep: Path, one_worker: Run) -> None:
    watch = small.Watch()
    before = (one_worker.path / "run.json").read_text(encoding="utf-8")
    found = small.train(sweep, one_worker.path, resume=True, observer=watch)
    small.assert_same_bits(found, one_worker)
    assert "finished already" in watch.events("warning")[0][0]
    assert (one_worker.path / "run.json").read_text(encoding="utf-8") == before
    other, _ = load_sweep(sweep, ("train.batch_size=64",))
    with pytest.raises(UserError, match=r"(?s)train\.batch_size.*64.*32"):
        small.train(other, one_worker.path, resume=True)


def test_the_store_has_changed_since(tmp_path: Path) -> None:
    small.write_stores(tmp_path / "stores")
    sweep = small.write_sweep(tmp_path)
    stop = small.Watch(started=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small.train(sweep, tmp_path / "run", observer=stop)
    ChunkStore.write(tmp_path / "stores" / "b", torch.randn(700, 6), chunk_rows=512, overwrite=True)
    with pytest.raises(UserError, match="other chunks now"):
        small.train(sweep, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.batch_size=513", "up to 512"),
        ("activations.store=nowhere", "no such folder"),
    ],
)
def test_what_cannot_be_trained_on(sweep: Path, tmp_path: Path, setting: str, said: str) -> None:
    other, _ = load_sweep(sweep, (setting,))
    with pytest.raises(UserError, match=said):
        small.train(other, tmp_path / "run")


def test_devices_that_are_not_there() -> None:
    from ensemble_sae.dispatch.devices import choose

    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"(?s)0 CUDA GPUs.*CPU cores.*--devices cpu:\d"):
            choose(8, None)
        with pytest.raises(UserError, match="fewer GPUs"):
            choose(None, "cuda:0")
    for nonsense in ("gpu", "cpu:x", "cpu:0", "", "cpu:1,cpu:1"):
        with pytest.raises(UserError):
            choose(None, nonsense)
    with pytest.raises(UserError, match="exclude"):
        choose(1, "cpu:1")
    with pytest.raises(UserError, match="counts GPUs"):
        choose(0, None)
    assert [device.name for device in choose(None, "cpu:2", threads=1)] == ["cpu:0", "cpu:1"]
