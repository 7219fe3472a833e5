"""Members with all that keeps a state of its own: interrupted, they end with the same bits."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from pathlib import Path

import pairs
import pytest
import small
import torch
from torch.testing import assert_close

import ensemble_sae
from ensemble_sae.engine.run_sweep import Interrupted
from ensemble_sae.run import Run

TOML = """
name = "options"
[activations]
store = "{store}"
hook = "a"
normalise = "standard"
[train]
batch_size = 32
epochs = 2
keep_checkpoints = 1
lr = 1e-2
optimiser = "adam"
resample_rows = 200
resample_every = 7
dead_after = 3
freeze_from = 12
[[grid]]
signature = "traps:Trapped"
n_dict = 24
l1 = [1e-3, 1e-2]
ema = [0.0, 0.9]
lr_schedule = "cosine"
lr_warmup = 10
[[grid]]
signature = "untied"
n_dict = 28
l1 = 1.0
resample = ["none", "loss", "random"]
init = {{ kind = "centroid", rare = 0.2 }}
[[grid]]
signature = "tied"
n_dict = 20
freeze_every = [0, 6]
freeze_at = 0.9995
target_l0 = 3
l1_warmup = 5
[[grid]]
signature = "affine"
n_dict = 20
centring = "mean"
whitening = true
unit_norm = "project"
remove_parallel = true
ema = 0.9
[[grid]]
signature = ["batchtopk", "matryoshka"]
n_dict = 24
k = 2
revive = "aux_k"
resample = "loss"
[[grid]]
signature = ["noise", "spike_slab_vae"]
n_dict = 16
init = "rows"
[[grid]]
signature = "masked"
n_dict = [10, 12]
ema = [0.0, 0.5]
freeze_every = 6
freeze_at = [0.995, 0.9995]
[[grid]]
signature = "transcoder"
hook = "a -> b"
n_dict = 16
ema = 0.9
"""
MIXED = """
name = "mixed"
[activations]
store = "{store}"
hook = "a"
normalise = "standard"
[train]
batch_size = 32
lr = 1e-2
optimiser = "radam"
dead_after = 3
[[members]]
signature = "traps:Trapped"
n_dict = 24
[[members]]
signature = "traps:Trapped"
n_dict = 24
ema = 0.9
[[members]]
signature = "traps:Trapped"
n_dict = 24
target_l0 = 5
[[members]]
signature = "traps:Trapped"
n_dict = 24
freeze_every = 6
freeze_at = 0.99
[[members]]
signature = "traps:Trapped"
n_dict = 24
l1 = 1.0
resample = "loss"
resample_every = 5
[[members]]
signature = "traps:Trapped"
n_dict = 24
l1 = 1e-2
lr_schedule = "linear"
"""
TRAPPED = {0, 1, 2, 3}  # the group that may be cut on two workers
FROZEN = "mechanisms/freezing/frozen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stores and the sweeps' files."""
    folder = tmp_path_factory.mktemp("options")
    for hook, rows in pairs.aligned(2).items():
        ensemble_sae.ChunkStore.write(folder / "stores" / hook, rows, chunk_rows=256, held_out=0.2)
    for name, text in (("options", TOML), ("mixed", MIXED)):
        (folder / f"{name}.toml").write_text(text.format(store=folder / "stores"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def one_worker(folder: Path) -> Run:
    """Undisturbed, on one worker."""
    return small.train(folder / "options.toml", folder / "one", "cpu:1")


@pytest.fixture(scope="module")
def two_workers(folder: Path) -> Run:
    """Undisturbed, on two workers."""
    return small.train(folder / "options.toml", folder / "two", "cpu:2")


def opened(run: Path) -> Run:
    return ensemble_sae.load(run, signatures={"traps:Trapped": small.traps.Trapped})


def spring(monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    monkeypatch.setenv("TRAP", trap)


def test_what_is_saved_has_been_used(one_worker: Run) -> None:
    """Otherwise the tests below would compare little."""
    states, members = small.states(one_worker), one_worker.members
    resampled = [states[m]["params/decoder"] for m in members.index[members["l1"] == 1.0]]
    assert len(resampled) == 3
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(resampled, 2))
    frozen = {m: s[FROZEN] for m, s in states.items() if FROZEN in s}
    assert any(0 < mask.sum() < mask.numel() for mask in frozen.values())
    assert any(status.startswith("finished at step") for status in members["status"])
    written = json.loads((one_worker.path / "members.json").read_text())["members"]
    assert [entry["status"] for entry in written] == members["status"].tolist()
    targets = members["penalty_factor"].dropna()
    assert list(targets.index) == list(members.index[members["target_l0"].notna()])
    assert (targets != 1).all()
    for member in members.index[members["signature"].isin(["batchtopk", "matryoshka"])]:
        assert states[member]["buffers/threshold"] > 0
    for member in members.index[members["ema"] > 0]:
        assert "mechanisms/average/decoder" in states[member]


def test_one_or_two_workers_train_the_same_members(one_worker: Run, two_workers: Run) -> None:
    one, two = small.states(one_worker), small.states(two_workers)
    whole = {part.members for part in one_worker.checkpoints[-1].parts}
    parts = [part.members for part in two_workers.checkpoints[-1].parts]
    assert set().union(*(set(ids) for ids in parts if ids not in whole)) <= TRAPPED
    for member, state in one.items():
        for name, tensor in state.items():
            if member in TRAPPED:
                assert_close(two[member][name], tensor, rtol=2e-4, atol=2e-5)
            else:
                assert torch.equal(two[member][name], tensor), (member, name)


def test_sigint_in_the_middle_of_a_chunk(
    folder: Path, tmp_path: Path, one_worker: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spring(monkeypatch, f"SIGINT@{random.Random(5).randrange(10, 50)}")
    with pytest.raises(Interrupted):
        small.train(folder / "options.toml", tmp_path / "run")
    (checkpoint,) = opened(tmp_path / "run").checkpoints
    assert any(part.position.batch for part in checkpoint.parts)
    spring(monkeypatch, "")
    found = small.train(folder / "options.toml", tmp_path / "run", resume=True)
    small.assert_same_bits(found, one_worker)


def kill(sweep: Path, run: Path, seed: int) -> None:
    """Train on two workers; SIGKILL some time after the first checkpoint."""
    process = small.command(
        sweep, "--devices", "cpu:2", "--threads", "1", "--run", run, PACE_MS="9"
    )
    while not any((run / "checkpoints").glob("step-*")):
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    time.sleep(random.Random(seed).uniform(0, 0.2))
    process.kill()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    assert small.orphans(process.pid) == []


def test_parts_of_a_stack_need_not_have_the_same_mechanisms(folder: Path, tmp_path: Path) -> None:
    """Two workers, then one: a stack was cut where only some of its members average."""
    sweep, run = folder / "mixed.toml", tmp_path / "run"
    expected = small.train(sweep, tmp_path / "undisturbed")
    kill(sweep, run, seed=8)
    parts = opened(run).checkpoints[-1].parts
    assert len({tuple(part.tensors) for part in parts}) == len(parts) == 2
    assert len({part.position for part in parts}) == 1
    found = small.train(sweep, run, resume=True)
    small.assert_close(found, expected, but="mechanisms/")  # not all of them are of use
    (part,) = found.checkpoints[-1].parts
    assert part.members == (0, 1, 2, 3, 4, 5)
    assert found.members["status"].tolist() == expected.members["status"].tolist()
    assert found.members["penalty_factor"].notna().tolist() == [False, False, True] + [False] * 3
