"""The study of positions by its command, and the embeddings that it counts on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from ensemble_sae import load, run_sweep
from ensemble_sae.analysis.positions import enumerated, sampled
from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.errors import UserError
from ensemble_sae.lm.embeddings import HOOK, Embeddings, embeddings, rows_of_text
from ensemble_sae.lm.harvest import harvest
from ensemble_sae.lm.load import EMBEDDED_FOLDER, load_model, run_hooks
from ensemble_sae.lm.origin import origin
from ensemble_sae.lm.text import contexts
from ensemble_sae.pages.page import Page
from ensemble_sae.studies import positions, positions_page

RECIPE = """
model = "{model}"
dataset = "embedded"
hooks = ["{hook}"]
context = 16
rows = 3_000
chunk_rows = 1_500
"""


@pytest.fixture(scope="module")
def embedded() -> Any:
    return load_model("embedded")


@pytest.fixture(scope="module")
def rotary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny untrained model that has rotary positions."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils import logging

    folder = tmp_path_factory.mktemp("rotary")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=4096,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        bos_token_id=0,
        eos_token_id=0,
    )
    logging.disable_progress_bar()
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(folder)
    return folder


def trained(folder: Path, model: str | Path, hook: str) -> Any:
    """Two small members of a hook, the recipe beside them."""
    (folder / "texts.toml").write_text(RECIPE.format(model=model, hook=hook))
    recipe = load_recipe(folder / "texts.toml")
    harvest(recipe, folder / "data")
    run_sweep(
        [{"signature": name, "dict_ratio": 1, "l1": 1e-3} for name in ("tied", "untied")],
        activations={"store": str(folder / "data/texts"), "normalise": "standard"},
        train={"batch_size": 128, "lr": 1e-2},
        run=folder / "run",
        devices="cpu:1",
        threads=1,
    )
    return load(folder / "run")


@pytest.fixture(scope="module")
def first_layer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("embedded"), "embedded", HOOK)


def test_tiles_are_what_the_model_reads(embedded: Any):
    """Every token at every position, against forwards of the model over the same tokens."""
    known = embeddings(embedded)
    assert known.tokens.shape == (4096, 128)
    assert known.positions.shape == (256, 128)
    seen = []
    for tokens, rows in known.tiles(size=3 * 256 + 5, every=97):
        assert rows.shape == (len(tokens), 256, 128)
        assert len(tokens) <= 3
        held = run_hooks(embedded, tokens[:, None].expand(-1, 256), [HOOK])[HOOK]
        torch.testing.assert_close(rows, held, rtol=0, atol=1e-6)
        seen += tokens.tolist()
    assert seen == list(range(0, 4096, 97))
    few = known.up_to(2)
    assert [len(tokens) for tokens, _ in few.tiles(size=1, every=2048)] == [1, 1]  # one at least
    assert next(few.tiles(size=10_000))[1].shape == (4096, 2, 128)


def test_rotary_positions_are_refused_and_scored_from_text(rotary: Path, tmp_path: Path):
    bridge = load_model(str(rotary))
    with pytest.raises(UserError, match="no learned absolute positions") as caught:
        embeddings(bridge)
    assert "rotary" in str(caught.value)
    assert "sampled" in str(caught.value.next_step)
    run = trained(tmp_path, rotary, "blocks.1.hook_resid_pre")
    source = positions._source(run, quick=True)
    assert isinstance(source.known, UserError)
    assert (source.positions, source.span) == (32, (1, 16))
    found = positions.studied(run, source, lambda done, total: None)
    table = positions.tabled(run, found)
    assert table["positions told"].isna().all()
    check_against_a_forward(run, rotary, source, found[1])
    page = Page("Rotary", "A model without learned absolute positions.")
    positions_page.draw(page, run, table, found, None, source.known)
    text = page.write(tmp_path / "page").read_text()
    assert "estimated from held-out text" in text
    assert (tmp_path / "page/along.png").exists()
    assert "nan" not in re.sub("<[^>]*>", " ", text).lower().split()


def check_against_a_forward(run: Any, model: Path, source: Any, found: Any) -> None:
    """Means over transformers' own hidden states, one position and one token at a time."""
    from transformers import GPTNeoXForCausalLM

    tokens, keep = source.text.tokens, source.text.is_read
    reference = GPTNeoXForCausalLM.from_pretrained(model)
    with torch.no_grad():
        states = reference.eval()(tokens, output_hidden_states=True).hidden_states[1]
    code = run.sae(1).encode(states).numpy()
    for p in (1, 7, 31):
        expected = code[:, p][keep[:, p].numpy()].mean(0)
        np.testing.assert_allclose(found.scores.by_position[:, p], expected, rtol=2e-3, atol=1e-5)
    inside = keep.clone()
    inside[:, 16:] = False
    counts = Counter(tokens[inside].tolist())
    means = [code[(inside & (tokens == t)).numpy()].mean(0) for t in counts if counts[t] >= 16]
    np.testing.assert_allclose(found.scores.token, np.max(means, 0), rtol=2e-3, atol=1e-5)


def test_another_sum_is_refused(embedded: Any):
    """A model that has tables, but does something else with them."""

    class Odd:
        cfg, W_E, W_pos = embedded.cfg, embedded.W_E, embedded.W_pos.flip(0)

        def __getattr__(self, name: str) -> Any:
            return getattr(embedded, name)

    with pytest.raises(UserError, match="not the sum"):
        embeddings(Odd())


def test_another_hook_has_no_embeddings(embedded: Any):
    recipe = load_recipe("embedded")
    assert isinstance(positions._known(embedded, recipe, 256), UserError)
    own = load_recipe("positions")
    assert isinstance(positions._known(embedded, own, 256), Embeddings)


def test_the_text_gives_about_what_the_embeddings_give(embedded: Any, first_layer: Any):
    """Where both are there: text weighs tokens by how often they occur, and peaks stay."""
    sae, known = first_layer.sae(1), embeddings(embedded).up_to(16)
    exact = enumerated(sae, known.tiles(every=4), (1, 16))
    text = contexts(origin(first_layer), embedded, 20_000)
    rows = rows_of_text(embedded, [HOOK], text)
    found = sampled(sae, rows, positions._frequent(text), 16, (1, 16))
    chosen = (exact.share > 0.5).nonzero()[:, 0]
    assert len(chosen) > 0
    assert found.share[chosen].min() > 0.3
    for f in chosen:
        curves = np.stack([exact.by_position[f, 1:], found.by_position[f, 1:]])
        assert np.corrcoef(curves)[0, 1] > 0.95


def test_the_study(tmp_path: Path):
    """As a new user would run it, the smaller version."""
    words = ["positions", "--quick", "--devices", "cpu:1", "--threads", "1"]
    environment = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_sae.study", *words],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "studies/positions-quick"
    text = (out / "index.html").read_text()
    shown = re.findall(r'<img src="([^"]+)"', text)
    assert sorted(shown) == ["along.png", "curves.png", "heat_map.png", "pca.png", "scores.png"]
    assert sorted(shown) == sorted(path.name for path in out.glob("*.png"))
    assert all((out / picture).stat().st_size > 10_000 for picture in shown)
    assert "nan" not in re.sub("<[^>]*>", " ", text).lower().split()
    found = json.loads((out / "numbers.json").read_text())
    for row in found["members"]:
        features = found["features"][str(row["id"])]
        assert 1 <= len(features) == row["positional"] < row["n_dict"] / 10
        assert np.median([f["share"] for f in features]) > 0.6
        assert row["positions told"] > 0.3
        assert row["FVU at the end"] > 1.5 * row["FVU"]
        curve = found["curves"][str(row["id"])]["fvu"]
        assert len(curve) == 256
        assert curve[0] is None  # nothing is read at BOS


def test_synthetic_rows_have_no_positions(tmp_path: Path):
    from ensemble_sae.studies import Request

    request = Request("positions", tmp_path, settings=("activations.recipe=toy_small",))
    with pytest.raises(UserError, match="rows of a language model"):
        positions.make(request, Console(quiet=True))


def test_members_that_are_shown():
    import pandas as pd

    names = ["tied a", "tied b", "tied c", "topk a", "untied a", "untied b"]
    table = pd.DataFrame(
        {"member": names, "L0": [3.0, 1, 2, 9, 4, 5]}, index=[10, 11, 12, 13, 14, 15]
    )
    assert positions_page.several(table) == [11, 13, 14, 10, 15]


def test_a_page_without_positional_features(first_layer: Any, tmp_path: Path):
    """Position tells nothing of these rows: the page says so, and draws what there is."""
    source = replace(positions._source(first_layer, quick=True), every=256)
    found = positions.studied(first_layer, source, lambda done, total: None)
    never = {
        m: replace(f, scores=replace(f.scores, token=f.scores.token + 100))
        for m, f in found.items()
    }
    page = Page("None", "Nothing is positional.")
    positions_page.draw(
        page, first_layer, positions.tabled(first_layer, never), never, None, source.known
    )
    assert positions_page.NONE in page.write(tmp_path / "page").read_text()
    assert {p.name for p in (tmp_path / "page").glob("*.png")} == {"scores.png", "along.png"}
