"""What `run.sae` gives is what was evaluated: averaged, in any frame, with a target or without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import ensemble_sae
from ensemble_sae.data.joined import open_rows
from ensemble_sae.engine.run_sweep import run_sweep
from ensemble_sae.errors import CorruptFile
from ensemble_sae.files import write_json
from ensemble_sae.randomness import generator
from ensemble_sae.run import Layout, Run, Sae

WIDTHS = {"a": 8, "b": 6}
MEMBERS = [
    {"signature": "tied", "hook": "a", "ema": 0.0},
    {"signature": "tied", "hook": "a", "ema": 0.95},
    {"signature": "untied", "hook": "a", "ema": 0.95, "unit_norm": "project"},
    {"signature": "untied", "hook": "a", "ema": 0.0, "unit_norm": "project"},
    {"signature": "affine", "hook": "a", "ema": 0.95, "input_relu": True},
    {"signature": "affine", "hook": "a", "ema": 0.95, "whitening": True, "decoder_bias": True},
    {"signature": "topk", "hook": "b", "k": 3, "centring": "mean", "whitening": True},
    {"signature": "batchtopk", "hook": "b", "k": 3, "ema": 0.95},
    {"signature": "masked", "hook": "b", "ema": 0.95, "n_dict": 9},
    {"signature": "masked", "hook": "b", "ema": 0.95, "n_dict": 12},
    {"signature": "spike_slab_vae", "hook": "b", "ema": 0.95},
    {"signature": "transcoder", "hook": "a -> b", "ema": 0.95},
    {"signature": "transcoder", "hook": "b + a -> b"},
    {"signature": "crosscoder", "hook": "a + b", "ema": 0.95},
]


def stores(folder: Path) -> Path:
    draw = generator(0, "evaluated")
    a = torch.randn(1280, 8, generator=draw) * torch.linspace(0.5, 3, 8) + 1
    b = a @ torch.randn(8, 6, generator=draw) / 3 - 2 + 0.3 * torch.randn(1280, 6, generator=draw)
    for hook, rows in (("a", a), ("b", b)):
        ensemble_sae.ChunkStore.write(folder / hook, rows, chunk_rows=256, held_out=0.2)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluated")
    return run_sweep(
        [{"n_dict": 16} | member for member in MEMBERS],
        activations={"store": str(stores(folder / "stores")), "normalise": "standard"},
        train={"batch_size": 32, "lr": 1e-2, "epochs": 2},
        run=folder / "run",
        devices="cpu:1",
        threads=1,
    )


def held_out(run: Run, hook: str) -> torch.Tensor:
    """The held-out rows of the points of a hook, side by side."""
    points = hook.replace("->", "+").split(" + ")
    folder = run.path.parent / "stores"
    rows = open_rows([folder / point.strip() for point in points])
    return torch.cat([rows.activations(chunk.index) for chunk in rows.chunks(held_out=True)])


def fvu(sae: Sae, rows: torch.Tensor) -> float:
    """Of what `sae(...)` gives, measured in the units of the training."""
    d, params, buffers = sae.config.d_activation, sae.params, sae.buffers
    entered = sae.units.enter(rows[:, :d])
    found = sae.target_units.enter(sae(rows[:, :d]))
    if sae.config.d_target:
        wanted = sae.target_units.enter(rows[:, d:])
    else:
        wanted = getattr(sae.signature, "target", lambda p, b, x: x)(params, buffers, entered)
    error = (found - wanted).double().square().sum()
    return float(error / (wanted - wanted.mean(0)).double().square().sum())


@pytest.mark.parametrize("member", range(len(MEMBERS)))
def test_its_error_is_that_of_the_table(run: Run, member: int) -> None:
    row, sae = run.members.loc[member], run.sae(member)
    rows = held_out(run, row["hook"])
    assert fvu(sae, rows) == pytest.approx(row["fvu"], rel=1e-4)
    code = sae.encode(rows[:, : sae.config.d_activation])
    assert code.shape[1] == row["n_dict"]
    assert float((code != 0).float().sum(1).mean()) == pytest.approx(row["l0"], rel=1e-3)
    raw = run.sae(member, averaged=False)
    if MEMBERS[member].get("ema"):
        assert fvu(raw, rows) != pytest.approx(row["fvu"], rel=1e-4)
    else:
        assert all(torch.equal(raw.params[name], t) for name, t in sae.params.items())


def test_averages_are_inside_their_constraints(run: Run) -> None:
    for averaged in (True, False):
        decoder = run.sae(2, averaged=averaged).params["decoder"]
        assert_close(decoder.norm(dim=1), torch.ones(16))
    checkpoint = run.checkpoints[-1]
    kept = checkpoint.member(2, "mechanisms/average/")["decoder"]
    assert float(kept.norm(dim=1).min()) < 1 - 1e-6, "an average of unit rows is shorter"
    raw = checkpoint.member(2, "params/")
    assert all(torch.equal(run.sae(2, averaged=False).params[k], t) for k, t in raw.items())


def test_a_checkpoint_without_averages_is_explained(run: Run) -> None:
    members = Layout(run.path).members
    before = members.read_text()
    edited = ensemble_sae.files.read_json(members)
    edited["members"][6]["dynamics"]["ema"] = 0.5
    write_json(members, edited)
    with pytest.raises(CorruptFile, match=r"lacks the averaged(.|\n)*6, averaged=False"):
        ensemble_sae.load(run.path).sae(6)
    members.write_text(before)
