"""Members that read several hook points, or predict one from others, beside members of one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pairs
import pytest
import small
import torch

import ensemble_sae
from ensemble_sae.data.joined import open_rows
from ensemble_sae.engine.run_sweep import Interrupted
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.run import Run

TOML = """
name = "several"
[activations]
store = "{store}"
normalise = "standard"
[train]
batch_size = 32
epochs = 2
checkpoint_every = 2
lr = 1e-2
[[grid]]
signature = "pairs:Predicts"
hook = ["a -> b", "b + a -> b"]
n_dict = 24
l1 = [1e-4, 1e-2]
[[grid]]
signature = "tied"
hook = ["a", "a + b"]
n_dict = 24
l1 = [1e-3, 1e-2]
"""


def opened(run: Path) -> Run:
    return ensemble_sae.load(run, signatures={"pairs:Predicts": pairs.Predicts})


def write_stores(folder: Path, **changes: int) -> None:
    for hook, rows in pairs.aligned(4).items():
        seed = changes.get(hook, 0)
        ensemble_sae.ChunkStore.write(
            folder / hook, rows, chunk_rows=512, held_out=0.2, seed=seed, source={"hook": hook}
        )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    write_stores(folder / "stores")
    path = folder / "several.toml"
    path.write_text(TOML.format(store=folder / "stores"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(sweep: Path) -> Run:
    small.train(sweep, sweep.parent / "undisturbed", "cpu:2")
    return opened(sweep.parent / "undisturbed")


def test_members_predict_in_the_units_of_the_model(undisturbed: Run, sweep: Path) -> None:
    joined = open_rows([sweep.parent / "stores" / hook for hook in "ab"])
    held = torch.cat([joined.activations(c.index) for c in joined.chunks(held_out=True)])
    a, b = held[:, :8], held[:, 8:]
    members = undisturbed.members
    for member, hook in members["hook"].items():
        sae = undisturbed.sae(int(member))
        inputs = {"a": a, "a + b": held, "a -> b": a, "b + a -> b": torch.cat([b, a], 1)}[hook]
        wanted = b if "->" in hook else inputs
        assert sae.encode(inputs).shape == (len(held), 24)
        found = sae(inputs[:, None])[:, 0]
        assert found.shape == wanted.shape
        # Measured in the units of the training, where each hook point has its own scale.
        gap = sae.target_units.enter(found) - sae.target_units.enter(wanted)
        around = sae.target_units.enter(wanted)
        fvu = float(gap.square().sum() / (around - around.mean(0)).square().sum())
        assert fvu == pytest.approx(float(members.loc[member, "fvu"]), rel=1e-3)
        if "->" in hook and members.loc[member, "l1"] == 1e-4:
            assert fvu < 0.1, "b follows from a"
        last = undisturbed.metrics.query("member == @member")["fvu"].iloc[-1]
        assert last == pytest.approx(fvu, rel=0.5), "the variance is that of what is predicted"
    with pytest.raises(UserError, match=r"\[\.\.\., 8\]"):
        undisturbed.select(hook="a -> b")[0].encode(held)


def test_units_and_variance_are_noted_by_hook_point(undisturbed: Run) -> None:
    assert set(undisturbed.sweep["units"]) == {"a", "b"}
    assert set(undisturbed.sweep["variance"]) == set(undisturbed.sweep["stores"]) == {"a", "b"}
    sae = undisturbed.select(hook="b + a -> b")[0]
    scales = [undisturbed.sweep["units"][point]["scale"] for point in "ba"]
    assert [part.scale for part in sae.units.parts] == scales
    assert sae.target_units.scale == scales[0]
    assert sae.config.widths == (6, 8, 6)
    assert "widths" not in undisturbed.members


def test_joined_rows_train_as_rows_that_were_stored_so(sweep: Path, tmp_path: Path) -> None:
    members = [{"signature": "untied", "n_dict": 12, "hook": hook} for hook in ("ab", "a + b")]
    activations = {"store": str(sweep.parent / "stores")}
    run = ensemble_sae.run_sweep(
        members, activations=activations, train={"batch_size": 32}, run=tmp_path / "run", threads=1
    )
    stored, joined = small.states(run).values()
    assert all(torch.equal(joined[name], tensor) for name, tensor in stored.items())
    assert len(joined) > 5
    for name in ("fvu", "l0", "dead"):
        first, second = run.members[name]
        assert first == second


def test_killed_and_resumed(sweep: Path, tmp_path: Path, undisturbed: Run) -> None:
    run = tmp_path / "run"
    words = (sweep, "--devices", "cpu:2", "--threads", "1", "--run", run)
    process = small.command(*words, TRAP="SIGKILL@54", PACE_MS="2")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    assert small.orphans(process.pid) == []
    small.train(sweep, run, "cpu:2", resume=True)
    small.assert_same_bits(opened(run), undisturbed)


def test_interrupted_in_the_middle_of_a_chunk(
    sweep: Path, tmp_path: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", "SIGINT@57")
    with pytest.raises(Interrupted):
        small.train(sweep, tmp_path / "run", "cpu:2")
    assert any(part.position.batch for part in opened(tmp_path / "run").checkpoints[-1].parts)
    monkeypatch.setenv("TRAP", "")
    small.train(sweep, tmp_path / "run", "cpu:2", resume=True)
    small.assert_same_bits(opened(tmp_path / "run"), undisturbed)


def test_stores_of_two_harvests_are_refused_before_there_is_a_run(tmp_path: Path) -> None:
    write_stores(tmp_path / "stores", b=1)
    sweep = tmp_path / "several.toml"
    sweep.write_text(TOML.format(store=tmp_path / "stores"), encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be joined(.|\n)*source\.seed(.|\n)*0 and 1"):
        small.train(sweep, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_of_before_have_no_widths(sweep: Path, tmp_path: Path) -> None:
    members = [{"signature": "tied", "n_dict": 12, "hook": "a"}]
    activations = {"store": str(sweep.parent / "stores"), "normalise": "standard"}
    train = {"batch_size": 32}
    run = ensemble_sae.run_sweep(members, activations=activations, train=train, run=tmp_path / "r")
    x = torch.randn(3, 8)
    expected = run.sae(0)(x)
    path = run.path / "members.json"
    noted = json.loads(path.read_text())
    del noted["members"][0]["widths"]
    path.write_text(json.dumps(noted))
    old = ensemble_sae.load(run.path).sae(0)
    assert old.config.widths == ()
    assert torch.equal(old(x), expected)
    for widths in ([7], [8, 1]):
        noted["members"][0]["widths"] = widths
        path.write_text(json.dumps(noted))
        with pytest.raises(CorruptFile, match="does not fit its widths"):
            ensemble_sae.load(run.path).sae(0)


def test_the_signatures_that_ship_for_several_hooks(sweep: Path, tmp_path: Path) -> None:
    members = [
        {"signature": "transcoder", "n_dict": 24, "hook": "a -> b", "l1": 1e-4},
        {"signature": "crosscoder", "n_dict": 24, "hook": "a + b", "l1": 1e-4},
    ]
    activations = {"store": str(sweep.parent / "stores"), "normalise": "standard"}
    train = {"batch_size": 32, "epochs": 4, "lr": 1e-2}
    run = ensemble_sae.run_sweep(
        members, activations=activations, train=train, run=tmp_path / "run", threads=1
    )
    assert (run.members["fvu"] < 0.3).all()
    assert run.sae(0)(torch.zeros(2, 8)).shape == (2, 6)
    assert run.sae(1)(torch.zeros(2, 14)).shape == (2, 14)
    with pytest.raises(UserError, match=r"'tied' reconstructs.*\n.*\n.*\n.*transcoder"):
        ensemble_sae.run_sweep(
            [{**members[0], "signature": "tied"}], activations=activations, run=tmp_path / "other"
        )
