"""Features of a member as a user asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ensemble_sae
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.inspection import request
from ensemble_sae.inspection.tuned_lens import TunedLens

SMALL = {"count": 60, "width": 16}


def test_a_pass_over_text(folder: Path, bridge) -> None:
    run = ensemble_sae.load(folder)
    seen: list[str] = []
    found = ensemble_sae.features(
        run, 2, on_progress=lambda what, done, total: seen.append(what), **SMALL
    )
    assert len(found) == 112
    assert set(seen) == {"reading"}
    assert found.settings["fragments"] == 60
    assert found.settings["tokens"] == 60 * 15  # BOS is not what members are trained on
    feature = int(found.alive[0])
    contexts = found[feature].contexts()
    largest = max(contexts[0].activations)
    assert largest == pytest.approx(found.table.loc[feature, "max"])
    assert contexts[0].activations[contexts[0].strongest] == largest
    # Independently: the same tokens through the model give the same activations.
    tokens = found.examples.top.tokens[feature, :1].long()
    from ensemble_sae.lm.load import run_hooks

    point = "blocks.2.hook_resid_pre"
    code = run.sae(2).encode(run_hooks(bridge, tokens, [point])[point])[0, :, feature]
    code[0] = 0
    torch.testing.assert_close(
        found.examples.top.activations[feature, 0], code, rtol=1e-4, atol=1e-4
    )
    text = str(found[feature])
    assert "promotes: `" in text
    assert "strongest:" in text
    assert "Features(Sae(2:" in repr(found)


def test_it_is_kept_and_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ensemble_sae.load(folder)
    first = ensemble_sae.features(run, 0, effects=True, **SMALL)
    monkeypatch.setattr(request, "look", None)  # a second pass would fail
    again = ensemble_sae.features(run, 0, effects=True, **SMALL)
    assert torch.equal(first.examples.top.activations, again.examples.top.activations)
    assert again.dropped is not None
    assert again.dropped.shape == (64, 16)
    columns = {"ablation_effect", "ablation_kl", "lowered", "raised", "steers_to", "hangs_on"}
    assert columns <= set(again.table.columns)
    for name in ("promoted", "lowered"):
        one, other = (list(map(list, table[name])) for table in (first.table, again.table))
        assert one == other
    assert str(first[3]) == str(again[3])
    with pytest.raises(TypeError):  # other fragments are another question
        ensemble_sae.features(run, 0, count=30, width=16)


def test_a_tuned_lens_stands_beside_the_logit_lens(folder: Path, bridge) -> None:
    run = ensemble_sae.load(folder)
    lens = TunedLens.identity(bridge, ["blocks.2.hook_resid_pre"])
    found = ensemble_sae.features(run, 0, tuned=lens, **SMALL)
    assert list(found.table["tuned_promoted"]) == list(found.table["promoted"])


def test_members_of_several_points(folder: Path) -> None:
    """A pair of points side by side and a transcoder: contexts; effects where they make sense."""
    run = ensemble_sae.load(folder)
    pair = ensemble_sae.features(run, 4, **SMALL)
    assert "promoted" not in pair.table
    with pytest.raises(UserError, match="read one hook point"):
        ensemble_sae.features(run, 4, effects=True, **SMALL)
    transcoder = ensemble_sae.features(run, 5, effects=True, **SMALL)
    assert "promoted" in transcoder.table
    assert transcoder.table["ablation_kl"].notna().any()


def test_what_is_kept_may_be_damaged(folder: Path) -> None:
    run = ensemble_sae.load(folder)
    ensemble_sae.features(run, 0, **SMALL)
    (next(folder.glob("inspected/member-000000-*")) / "table.parquet").write_bytes(b"nothing")
    with pytest.raises(CorruptFile, match="made again"):
        ensemble_sae.features(run, 0, **SMALL)


def test_questions_that_have_no_answer(folder: Path) -> None:
    run = ensemble_sae.load(folder)
    with pytest.raises(UserError, match="no such member"):
        ensemble_sae.features(run, 99, **SMALL)
    found = ensemble_sae.features(run, 0, **SMALL)
    with pytest.raises(UserError, match="0 to 63"):
        _ = found[64]
    with pytest.raises(UserError, match="top, spread, random"):
        found[0].contexts("all")  # type: ignore[arg-type]


def test_text_cannot_move_the_cursor(folder: Path) -> None:
    """A document may hold control sequences: they are shown, never sent to the terminal."""
    run = ensemble_sae.load(folder)
    found = ensemble_sae.features(run, 0, **SMALL)
    for token in list(found.vocabulary):
        found.vocabulary[token] = "\x1b[2J<script>"
    text = str(found[int(found.alive[0])])
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
