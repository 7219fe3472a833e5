"""The tuned lens: what it minimises, that it learns, and what its files and errors say."""

from __future__ import annotations

import pytest
import torch
from making import rows
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.inspection import tuned_lens as module
from ensemble_sae.inspection.lens import Head, logit_lens
from ensemble_sae.inspection.tuned_lens import TunedLens
from ensemble_sae.lm.documents import documents, with_sides
from ensemble_sae.lm.harvest_contexts import blocks
from ensemble_sae.lm.harvest_model import tokeniser
from ensemble_sae.lm.load import EMBEDDED_FOLDER, load_model, run_hooks

EARLY, LATE = HOOKS = ["blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"]


@pytest.fixture(scope="module")
def bridge():
    return load_model("embedded")


@pytest.fixture(scope="module")
def text(bridge):
    """Contexts of 32 tokens to train on, and held-out ones."""
    given = {"model": "embedded", "dataset": "embedded", "hooks": (EARLY,), "context": 32}
    recipe = Recipe(name="text", rows=4_000, held_out=0.1, chunk_rows=9_000, **given)
    sided = with_sides(documents(recipe), recipe.held_out, recipe.seed)
    found = list(blocks(recipe, sided, *tokeniser(bridge)))
    return [
        torch.cat([block.tokens for block in found if block.held_out == side])[:100]
        for side in (False, True)
    ]


@pytest.fixture(scope="module")
def trained(bridge, text):
    seen = []
    lens = TunedLens.train(
        bridge, text[0], HOOKS, steps=12, batch_size=4, lr=3e-3, on_progress=seen.append
    )
    return lens, seen


@torch.no_grad()
def by_hand(bridge_tokens, matrix, bias, layer):
    """Mean KL(final || lens) in float64, with transformers' own model and plain tensors."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float64).eval()
    out = model(bridge_tokens.long(), output_hidden_states=True)
    h = out.hidden_states[layer]  # before block `layer`
    h = h + torch.einsum("ij,btj->bti", matrix.double(), h) + bias.double()
    h = h - h.mean(-1, keepdim=True)
    h = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    h = h * model.transformer.ln_f.weight + model.transformer.ln_f.bias
    q, p = (h @ model.lm_head.weight.T).softmax(-1), out.logits.softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def test_kl_against_one_by_hand(bridge, text, trained):
    lens, held = trained[0], text[1][:10]
    keep = torch.rand(held.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for hook, layer in zip(HOOKS, (1, 3), strict=True):
        expected = by_hand(held, *lens.translators[hook], layer)
        assert lens.kl(bridge, held)[hook] == pytest.approx(float(expected.mean()), rel=1e-4)
        kept = lens.kl(bridge, held, keep)[hook]
        assert kept == pytest.approx(float(expected[keep].mean()), rel=1e-4)


def test_training_lowers_the_kl_on_held_out_contexts(bridge, text, trained):
    lens, seen = trained
    before, after = TunedLens.identity(bridge, HOOKS).kl(bridge, text[1]), lens.kl(bridge, text[1])
    assert after[EARLY] < 0.75 * before[EARLY]
    assert after[LATE] < 0.85 * before[LATE]
    assert [step.step for step in seen] == list(range(1, 13))
    assert seen[0].kl.keys() == set(HOOKS)
    assert all(parameter.grad is None for parameter in bridge.parameters())


def test_the_gradient_is_that_of_the_mean_over_all_blocks(bridge, text, monkeypatch):
    """One step of many small blocks is one step of a single block."""
    given = {"steps": 1, "batch_size": 2, "lr": 1e-2}
    whole = TunedLens.train(bridge, text[0], [LATE], **given)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 7 * 4096)
    cut = TunedLens.train(bridge, text[0], [LATE], **given)
    for one, other in zip(whole.translators[LATE], cut.translators[LATE], strict=True):
        # Adam's first step is the gradient's sign times lr: only entries near 0 may differ.
        assert ((one - other).abs() < 1e-4).float().mean() > 0.99


def test_gradients_against_differences(text):
    """The mean KL falls along both gradients as fast as differences in float64 say."""
    bridge = load_model("embedded", dtype=torch.float64)
    streams = run_hooks(bridge, text[0][:2].long(), [LATE, "blocks.3.hook_resid_post"])
    early, final = (stream.reshape(-1, 128) for stream in streams.values())
    learner = module._Learner(rows(128, 128) / 50, rows(1, 128, seed=1)[0])
    learner.learn(Head(bridge), early, final)
    gradients = [part.grad.clone() for part in learner.parts]
    for part, gradient in zip(learner.parts, gradients, strict=True):
        along = 1e-5 * gradient / gradient.norm()
        ends = []
        for sign in (1, -1):
            part += sign * along
            ends.append(learner.learn(Head(bridge), early, final))
            part -= sign * along
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_training_follows_the_seed_and_the_kept_tokens(bridge, text):
    given = {"steps": 2, "batch_size": 3}
    first, again = (TunedLens.train(bridge, text[0], [LATE], **given) for _ in range(2))
    other = TunedLens.train(bridge, text[0], [LATE], seed=1, **given)
    few = TunedLens.train(bridge, text[0], [LATE], keep=text[0] % 2 == 0, **given)
    matrices = [lens.translators[LATE][0] for lens in (first, again, other, few)]
    assert torch.equal(matrices[0], matrices[1])
    assert not torch.equal(matrices[0], matrices[2])
    assert not torch.equal(matrices[0], matrices[3])


def test_one_hook_by_its_name(bridge, text):
    given = {"steps": 1, "batch_size": 2}
    one, listed = (TunedLens.train(bridge, text[0], h, **given) for h in (LATE, [LATE]))
    assert list(one.translators) == list(TunedLens.identity(bridge, LATE).translators) == [LATE]
    assert torch.equal(one.translators[LATE][0], listed.translators[LATE][0])


def test_orders_of_all_contexts_one_after_the_other():
    batches = list(module._batches(5, 2, 5, seed=0))
    order = torch.cat(batches).tolist()
    assert [len(batch) for batch in batches] == [2] * 5
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))
    assert len(next(module._batches(2, 7, 1, seed=0))) == 7  # fewer contexts than a batch


def test_the_identity_is_the_logit_lens(bridge):
    vectors = rows(5, 128, dtype=torch.float32)
    tuned = TunedLens.identity(bridge, HOOKS)
    for one, other in zip(
        tuned.logit_lens(bridge, vectors, EARLY, k=4), logit_lens(bridge, vectors, 4), strict=True
    ):
        assert torch.equal(one.ids, other.ids)
        assert_close(one.values, other.values)
    with torch.no_grad():
        assert_close(tuned.logits(bridge, LATE, vectors), bridge.unembed(bridge.ln_final(vectors)))
    assert torch.equal(tuned.translate(EARLY, vectors), vectors)


def test_directions_are_carried_by_the_matrix_and_not_the_bias(bridge):
    vectors, tuned = rows(5, 128, dtype=torch.float32), TunedLens.identity(bridge, [EARLY])
    matrix, bias = tuned.translators[EARLY]
    matrix[:], bias[:] = rows(128, 128, seed=2).float() / 10, 1e3 * rows(1, 128, seed=3).float()[0]
    expected = logit_lens(bridge, torch.stack([v + matrix @ v for v in vectors]), 4)
    found = tuned.logit_lens(bridge, vectors, EARLY, 4)
    assert torch.equal(found.promoted.ids, expected.promoted.ids)
    assert_close(found.suppressed.values, expected.suppressed.values, rtol=1e-4, atol=1e-4)


# --- files


def test_saved_and_loaded(bridge, trained, tmp_path):
    path = tmp_path / "lenses" / "tuned.safetensors"
    trained[0].save(path)
    loaded = TunedLens.load(path, bridge)
    assert list(loaded.translators) == HOOKS
    assert loaded.model == trained[0].model
    assert loaded.model_name == trained[0].model_name == "embedded"
    for hook in HOOKS:
        for one, other in zip(loaded.translators[hook], trained[0].translators[hook], strict=True):
            assert torch.equal(one, other)


def test_damaged_files(bridge, trained, tmp_path):
    path = tmp_path / "tuned.safetensors"
    with pytest.raises(UserError, match="missing"):
        TunedLens.load(path, bridge)
    trained[0].save(path)
    whole, tensors, about = path.read_bytes(), load_file(path), header(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(CorruptFile, match="truncated"):
        TunedLens.load(path, bridge)
    save_file(tensors, path)
    with pytest.raises(CorruptFile, match="no tuned lens"):
        TunedLens.load(path, bridge)
    for changed in (
        {k: v for k, v in tensors.items() if k != "1.b"},
        {**tensors, "0.A": tensors["0.A"][:, :5].contiguous()},
        {**tensors, "0.b": tensors["0.b"] * float("nan")},
    ):
        save_file(changed, path, about)
        with pytest.raises(CorruptFile, match="damaged"):
            TunedLens.load(path, bridge)
    save_file(tensors, path, {**about, "hooks": "[3"})
    with pytest.raises(CorruptFile, match="damaged"):
        TunedLens.load(path, bridge)


def header(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def test_files_of_another_model(bridge, trained, tmp_path):
    path = tmp_path / "tuned.safetensors"
    trained[0].save(path)
    tensors, about = load_file(path), header(path)
    save_file(tensors, path, {**about, "model": "0123"})
    with pytest.raises(UserError, match=r"another model[\s\S]*0123"):
        TunedLens.load(path, bridge)
    narrow = {k: torch.zeros(64, 64)[0 if k.endswith("b") else slice(64)] for k in tensors}
    save_file({k: t.clone() for k, t in narrow.items()}, path, about)
    with pytest.raises(UserError, match=r"another width[\s\S]*64[\s\S]*128"):
        TunedLens.load(path, bridge)


# --- mistakes


def test_hooks_that_cannot_be_tuned(bridge, text):
    with pytest.raises(UserError, match="closest"):
        TunedLens.train(bridge, text[0], ["blocks.1.hook_resid_per"])
    with pytest.raises(UserError, match=r"residual stream[\s\S]*hook_mlp_out"):
        TunedLens.train(bridge, text[0], ["blocks.1.hook_mlp_out"])
    with pytest.raises(UserError, match="no contexts"):
        TunedLens.train(bridge, text[0][:0], HOOKS)


def test_wrong_use(bridge, trained):
    with pytest.raises(UserError, match=r"no translator[\s\S]*blocks\.1\.hook_resid_pre"):
        trained[0].translate("blocks.2.hook_resid_pre", torch.zeros(128))
    with pytest.raises(UserError, match="residual stream"):
        trained[0].logit_lens(bridge, torch.zeros(2, 512), EARLY)
    other = TunedLens("0123", trained[0].translators)
    with pytest.raises(UserError, match="another model"):
        other.logits(bridge, EARLY, torch.zeros(1, 128))


def test_what_can_be_asked_before_a_long_pass(bridge, trained):
    lens = trained[0]
    lens.check(bridge, EARLY)
    with pytest.raises(UserError, match=r"no translator[\s\S]*blocks\.2[\s\S]*blocks\.1"):
        lens.check(bridge, "blocks.2.hook_resid_pre")
    says = r"another model[\s\S]*found: +embedded, [\s\S]*allowed: +gpt2, fingerprint 0123"
    with pytest.raises(UserError, match=says):
        TunedLens("0123", lens.translators, "gpt2").check(bridge, EARLY)


def test_a_model_with_another_end_is_refused(bridge, text, monkeypatch):
    monkeypatch.setattr(bridge.cfg, "output_logits_soft_cap", 1.0)  # which it does not have
    with pytest.raises(UserError, match="does more between"):
        TunedLens.train(bridge, text[0], [LATE], steps=1)
