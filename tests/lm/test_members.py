"""Where a run's rows come from, and how an autoencoder fits the hooks of a language model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ensemble_sae.baselines.axes import random
from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.engine.results import write_members
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import write_json
from ensemble_sae.lm.load import load_model
from ensemble_sae.lm.members import apart, check_fits, joined
from ensemble_sae.lm.origin import origin
from ensemble_sae.run import Layout, Run, load
from ensemble_sae.run.layout import SCHEMA_VERSION
from ensemble_sae.sweep import Sweep, expand, groups_of

RESID, MLP = "blocks.2.hook_resid_pre", "blocks.2.hook_mlp_out"
SOURCE = {
    "model": "embedded",
    "dataset": "texts/*.jsonl",
    "context": 48,
    "held_out": 0.25,
    "seed": 7,
    "drop_bos": False,
    "weights": "a field that no recipe has",
}


def write_run(folder: Path, stores: dict[str, Path], hook: str = RESID, **activations: str) -> Run:
    """A run that has not begun to train: what it is of is known."""
    layout = Layout(folder)
    signature = "transcoder" if "->" in hook else "tied"
    sweep = Sweep.model_validate(
        {
            "name": "s",
            "activations": activations or {"store": "s"},
            "members": [{"signature": signature, "n_dict": 4, "hook": hook}],
        }
    )
    members = expand(sweep, dict.fromkeys((RESID, MLP), 128))
    with layout.locked():
        facts = {"sweep": sweep.model_dump(mode="json"), "units": {}}
        facts["stores"] = {name: str(path) for name, path in stores.items()}
        write_json(layout.sweep, {"schema_version": SCHEMA_VERSION, **facts})
        write_json(layout.status, {"schema_version": SCHEMA_VERSION, "status": "running"})
        write_members(layout, groups_of(members), {m.id: "trained" for m in members})
    return load(folder)


def store(folder: Path, source: dict[str, Any] | None) -> Path:
    ChunkStore.write(folder, torch.randn(40, 128), chunk_rows=32, source=source)
    return folder


# --- where rows come from


def test_the_stores_say_where_their_rows_come_from(tmp_path):
    run = write_run(tmp_path / "run", {RESID: store(tmp_path / "s", SOURCE)})
    found = origin(run)
    assert (found.model, found.dataset, found.context) == ("embedded", "texts/*.jsonl", 48)
    assert (found.held_out, found.seed, found.drop_bos) == (0.25, 7, False)
    assert found.hooks == (RESID,)


def test_the_points_of_a_hook_are_the_recipes_hooks(tmp_path):
    at = store(tmp_path / "s", SOURCE)
    run = write_run(tmp_path / "run", {RESID: at, MLP: at}, hook=f"{RESID} -> {MLP}")
    assert set(origin(run).hooks) == {RESID, MLP}


def test_what_is_given_goes_before_what_is_known(tmp_path):
    run = write_run(tmp_path / "run", {RESID: store(tmp_path / "s", SOURCE)})
    found = origin(run, model="gpt2", dataset=None, context=16)
    assert (found.model, found.dataset, found.context) == ("gpt2", "texts/*.jsonl", 16)
    with pytest.raises(UserError, match="context"):
        origin(run, context=1)


def test_without_its_stores_the_recipe_tells(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'model = "embedded"\ndataset = "x.txt"\nhooks = ["{RESID}"]\ncontext = 20\n')
    run = write_run(tmp_path / "run", {RESID: tmp_path / "gone"}, recipe=str(recipe))
    found, expected = origin(run), load_recipe(recipe)
    same = ("model", "dataset", "context", "held_out", "seed", "drop_bos", "model_dtype")
    assert [getattr(found, name) for name in same] == [getattr(expected, name) for name in same]
    recipe.unlink()
    with pytest.raises(UserError, match=r"mine\.toml"):
        origin(run)


def test_a_run_in_the_working_folder(tmp_path, monkeypatch):
    write_run(tmp_path / "run", {RESID: store(tmp_path / "s", SOURCE)})
    monkeypatch.chdir(tmp_path / "run")
    assert origin(load(".")).context == 48


@pytest.mark.parametrize("gone", [False, True])
def test_rows_that_were_brought_along(tmp_path, gone):
    at = store(tmp_path / "s", None)
    run = write_run(tmp_path / "run", {RESID: at})
    if gone:
        shutil.rmtree(at)
    with pytest.raises(UserError, match=r"Nobody knows[\s\S]*--model MODEL --dataset DATASET"):
        origin(run)
    with pytest.raises(UserError, match=r"--dataset DATASET") as told:
        origin(run, model="embedded")
    assert "--model" not in str(told.value)
    assert origin(run, model="embedded", dataset="embedded").context == 256


def test_synthetic_rows(tmp_path):
    said = "synthetic: no language model"
    run = write_run(tmp_path / "a", {RESID: store(tmp_path / "s", {"kind": "synthetic"})})
    with pytest.raises(UserError, match=said):
        origin(run)
    run = write_run(tmp_path / "b", {RESID: tmp_path / "gone"}, recipe="toy_small")
    with pytest.raises(UserError, match=said):
        origin(run, model="embedded", dataset="embedded")


def test_a_store_that_is_damaged_is_named(tmp_path):
    at = store(tmp_path / "s", SOURCE)
    run = write_run(tmp_path / "run", {RESID: at})
    (at / "meta.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"meta\.json"):
        origin(run)


# --- at a hook


@pytest.fixture(scope="module")
def bridge():
    return load_model("embedded")


@pytest.mark.parametrize(
    ("hook", "width"),
    [
        (RESID, 128),
        (f"{RESID} + {MLP}", 256),
        (f"{RESID} -> {MLP}", 128),
        ("blocks.1.mlp.hook_post", 512),
        (f"{RESID} -> {RESID}", 128),
    ],
)
def test_an_autoencoder_as_wide_as_what_it_reads(bridge, hook, width):
    sae = random(torch.zeros(1, width), 3, 0)
    assert check_fits(bridge, sae, hook).name == hook
    other = random(torch.zeros(1, width + 1), 3, 0)
    with pytest.raises(UserError, match=rf"d_activation {width + 1}[\s\S]*{width}, the width"):
        check_fits(bridge, other, hook)


def test_hooks_that_are_none(bridge):
    sae = random(torch.zeros(1, 128), 3, 0)
    with pytest.raises(UserError, match="give hook="):
        check_fits(bridge, sae)
    with pytest.raises(UserError, match=r"closest are .*blocks\.2\.hook_resid_pre"):
        check_fits(bridge, sae, "blocks.2.hook_resid_per")
    with pytest.raises(UserError, match=r"closest are .*blocks\.2\.hook_mlp_out"):
        check_fits(bridge, sae, f"{RESID} -> blocks.2.hook_mlp_ot")
    with pytest.raises(UserError, match=r"one vector per token[\s\S]*hook_pattern"):
        check_fits(bridge, sae, "blocks.1.attn.hook_pattern")


def test_rows_side_by_side_and_apart_again():
    values = {"a": torch.randn(2, 3, 4), "b": torch.randn(2, 3, 5).half()}
    rows = joined(("b", "a"), values)
    assert torch.equal(rows[..., :5], values["b"].float())
    assert torch.equal(rows[..., 5:], values["a"])
    parts = apart(("b", "a"), rows, values)
    for name, part in parts.items():
        assert part.dtype == values[name].dtype
        assert torch.equal(part, values[name])
    assert joined(("a",), values) is values["a"]
