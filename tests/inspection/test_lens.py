"""Directions and the logit lens, against plain tensors of transformers' own models."""

from __future__ import annotations

import pytest
import torch
from making import member, rows
from torch.testing import assert_close

from ensemble_sae.data.units import Units
from ensemble_sae.errors import UserError
from ensemble_sae.inspection import lens as module
from ensemble_sae.inspection.directions import directions, hook_points
from ensemble_sae.inspection.lens import Head, logit_lens
from ensemble_sae.lm.load import EMBEDDED_FOLDER, load_model, run_hooks
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.sweep import Member

D, N, TARGET = 6, 11, 4
HOOK = "blocks.2.hook_resid_pre"


def sae_of(name, hook=HOOK, dtype=torch.float64, scale=2.5):
    """An SAE of a signature in general position, with units of its own."""
    options = {"widths": (D, TARGET)} if name == "transcoder" else {}
    params, buffers = member(name, D + TARGET if options else D, N, dtype=dtype, **options)
    about = {"dict_ratio": N / D, "lr": 1e-3, "grad_clip": None, "seed": 0, "hyperparameters": {}}
    widths = options.get("widths", (D,))
    config = Member(3, name, name, hook, D, n_dict=N, widths=widths, **about)
    units = Units(scale, tuple(100.0 * i for i in range(D)))
    targets = Units(3.0, tuple(-7.0 * i for i in range(TARGET))) if options else None
    return Sae(config, BUILTIN[name], params, buffers, units, targets)


@pytest.fixture(scope="module")
def bridge():
    return load_model("embedded", dtype=torch.float64)


@pytest.fixture(scope="module")
def reference():
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def rms_model(tmp_path_factory):
    """A tiny model with an RMSNorm, an untied unembedding and a padded vocabulary."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4100,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.rand(16) + 0.5)
        model.lm_head.weight[4096:] = 100.0  # padding: would win every list
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(folder)
    return load_model(str(folder), dtype=torch.float64), model


# --- directions


@pytest.mark.parametrize("name", ["tied", "untied", "affine", "topk", "gated", "transcoder"])
def test_a_direction_is_what_one_unit_of_code_adds(name):
    sae = sae_of(name, f"{HOOK} -> blocks.2.hook_mlp_out" if name == "transcoder" else HOOK)
    found, codes = directions(sae), rows(5, N, seed=1).abs()
    assert found.shape == (N, TARGET if name == "transcoder" else D)
    for f in range(N):
        one = torch.zeros(N, dtype=torch.float64)
        one[f] = 1
        assert_close(found[f], sae.decode(one) - sae.decode(torch.zeros_like(one)))
    assert_close(sae.decode(codes), sae.decode(torch.zeros_like(codes)) + codes @ found)
    assert_close(directions(sae, [7, 0, 7]), found[[7, 0, 7]])
    assert directions(sae, []).shape == (0, found.shape[1])


def test_directions_of_float32_are_not_rounded_by_a_long_mean(monkeypatch):
    monkeypatch.setattr("ensemble_sae.inspection.directions._BLOCK_VALUES", 2 * N)
    single, double = sae_of("untied", dtype=torch.float32), sae_of("untied")
    assert directions(single).dtype == torch.float32
    assert_close(directions(single).double(), directions(double), rtol=1e-6, atol=1e-6)
    assert_close(directions(single, range(N)), directions(single), rtol=1e-6, atol=1e-6)


def test_the_points_that_are_read_and_written():
    assert hook_points(sae_of("tied", "a")) == ("a", "a")
    assert hook_points(sae_of("tied", "a -> b")) == ("a", "b")
    for hook in ("a + b", "a + b -> c", "a -> b + c"):
        with pytest.raises(UserError, match=r"member 3[\s\S]*side by side|side by side[\s\S]*3"):
            hook_points(sae_of("tied", hook))
    with pytest.raises(UserError, match="no hook"):
        hook_points(sae_of("tied", ""))


# --- the logit lens


@torch.no_grad()
def test_layer_norm_against_plain_tensors(bridge, reference):
    vectors = rows(7, 128)
    weight, out = reference.transformer.ln_f.weight, reference.lm_head.weight
    centred = vectors - vectors.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    expected = (normed * weight) @ out.T  # neither the norm's bias nor the unembedding's
    check(logit_lens(bridge, vectors, k=5), expected, 5)
    assert reference.transformer.ln_f.bias.abs().max() > 1e-3  # there is one to leave out


@torch.no_grad()
def test_rms_norm_against_plain_tensors(rms_model):
    bridge, model = rms_model
    vectors = rows(7, 16)
    normed = vectors / (vectors.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = (normed * model.model.norm.weight) @ model.lm_head.weight.T
    check(logit_lens(bridge, vectors, k=5), expected[:, :4096], 5)
    assert (expected.argmax(1) >= 4096).any()  # padding is what would have been listed


def check(effect, expected, k):
    order = expected.argsort(dim=1)
    assert torch.equal(effect.promoted.ids, order.flip(1)[:, :k])
    assert torch.equal(effect.suppressed.ids, order[:, :k])
    for ranked in effect:
        assert_close(ranked.values, expected.gather(1, ranked.ids))


def test_blocks_are_all_directions_once(bridge, monkeypatch):
    vectors = rows(7, 128)
    whole = logit_lens(bridge, vectors, k=3)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 2 * 4096)
    for one, other in zip(whole, logit_lens(bridge, vectors, k=3), strict=True):
        assert torch.equal(one.ids, other.ids)
        assert one.tokens == other.tokens
        assert_close(one.values, other.values)
    assert logit_lens(bridge, vectors[:0], k=3).promoted.ids.shape == (0, 3)


def test_tokens_are_told_by_their_text(bridge):
    """What tells " return" from " yield" in the unembedding promotes " return"."""
    one, other = (bridge.tokenizer(text)["input_ids"][-1] for text in (" return", " yield"))
    rows_of = bridge.W_U.detach().T / bridge.ln_final.original_component.weight.detach()
    effect = logit_lens(bridge, (rows_of[one] - rows_of[other])[None], k=3)
    assert " return" in effect.promoted.tokens[0]
    for ranked in effect:
        assert ranked.tokens == [[bridge.tokenizer.decode([i]) for i in ranked.ids[0].tolist()]]


@torch.no_grad()
def test_the_head_gives_the_logits_of_the_model(bridge, rms_model):
    for model in (bridge, rms_model[0]):
        tokens = torch.arange(1, 12)[None]
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        stream = run_hooks(model, tokens, [last])[last]
        assert_close(Head(model).logits(stream), model(tokens))


def test_a_soft_cap_is_part_of_logits_and_not_of_effects(bridge, monkeypatch):
    stream, plain = rows(3, 128), Head(bridge)
    monkeypatch.setattr(bridge.cfg, "output_logits_soft_cap", 2.0)
    capped = Head(bridge)
    assert_close(capped.logits(stream), 2 * torch.tanh(plain.logits(stream) / 2))
    assert_close(capped.effect(stream), plain.effect(stream))


@pytest.mark.parametrize(
    ("width", "hook"),
    [
        (512, "blocks.1.mlp.hook_post"),  # an MLP's hidden values
        (32, "blocks.1.attn.hook_z"),  # one head
        (128, "blocks.1.attn.q.hook_out"),  # as wide as the stream, and no part of it
        (128, "blocks.1.ln2.hook_out"),
        (512, None),
    ],
)
def test_directions_that_are_not_of_the_stream(bridge, width, hook):
    with pytest.raises(UserError, match=rf"{width}\][\s\S]*\[n, 128\][\s\S]*W_out"):
        logit_lens(bridge, torch.zeros(2, width), hook=hook)


@pytest.mark.parametrize(
    "hook", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out", "attn.hook_out"]
)
def test_directions_that_are(bridge, hook):
    assert len(logit_lens(bridge, rows(2, 128), k=1, hook=f"blocks.3.{hook}").promoted.ids) == 2


def test_k_outside_the_vocabulary(bridge):
    for k in (0, 4097):
        with pytest.raises(UserError, match=r"1 to 4096"):
            logit_lens(bridge, rows(2, 128), k=k)
