"""A forward that is gone on with from a hook point equals a whole one; losses against others'."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.lm.load import EMBEDDED_FOLDER, load_model
from ensemble_sae.lm.losses import Clean, losses
from ensemble_sae.lm.splice import Forward

CONTEXTS, WIDTH = 3, 24
SHAPE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
HOOKS = {
    "embedded": [
        "hook_embed",
        "hook_pos_embed",
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_mid",
        "blocks.2.hook_resid_pre",
        "blocks.2.hook_mlp_out",
        "blocks.2.attn.hook_z",
        "blocks.3.hook_resid_post",
        "ln_final.hook_out",
    ],
    "neox": [
        "hook_embed",
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_mlp_out",
        "blocks.2.attn.hook_out",
        "ln_final.hook_in",
    ],
    "llama": [
        "hook_embed",
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_resid_mid",
        "blocks.2.mlp.hook_post",
        "ln_final.hook_out",
    ],
}
CASES = [(model, hook) for model, hooks in HOOKS.items() for hook in hooks]


@pytest.fixture(scope="module")
def bridges(tmp_path_factory):
    """The embedded model, and two random ones with rotary positions."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

    configs = {
        "neox": GPTNeoXConfig(**SHAPE),
        "llama": LlamaConfig(**SHAPE, num_key_value_heads=2),
    }
    found = {"embedded": load_model("embedded")}
    for name, config in configs.items():
        folder: Path = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for path in EMBEDDED_FOLDER.glob("tokenizer*"):
            shutil.copy(path, folder)
        found[name] = load_model(str(folder))
    return found


@pytest.fixture(scope="module")
def tokens():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(4096, (CONTEXTS, WIDTH), generator=draw)
    tokens[:, 0] = tokens[1, 7] = tokens[2, -1] = 0  # BOS, which is also the padding
    return tokens


def another(value: Tensor, copies: int = 1) -> Tensor:
    """Values of the same size that are not the model's own."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(copies * len(value), *value.shape[1:], generator=draw)
    return value.repeat(copies, *(1 for _ in value.shape[1:])) + 0.5 * value.std() * noise


def whole(bridge: Any, tokens: Tensor, values: dict[str, Tensor]) -> Tensor:
    """A whole forward of the bridge in which hooks give other values."""
    hooks = [(name, lambda old, hook, new=new: new) for name, new in values.items()]
    with torch.no_grad():
        return bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("model", HOOKS)
def test_values_and_logits_are_the_bridges_own(bridges, tokens, model):
    bridge, points = bridges[model], HOOKS[model]
    forward = Forward(bridge, tokens, points)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens, names_filter=points)
    assert set(forward.values) == set(points)
    for point in points:
        same(forward.values[point], cache[point])
    same(forward.logits, logits)
    short = Forward(bridge, tokens, points, logits=False)
    assert short.logits.numel() == 0
    for point in points:
        same(short.values[point], cache[point])


@pytest.mark.parametrize(("model", "hook"), CASES)
def test_going_on_equals_a_whole_forward(bridges, tokens, model, hook):
    bridge = bridges[model]
    forward = Forward(bridge, tokens, [hook])
    given = another(forward.values[hook])
    expected = whole(bridge, tokens, {hook: given})
    assert not torch.allclose(expected, forward.logits, atol=1e-2)  # the hook does something
    same(forward.with_values({hook: given}), expected)
    same(forward.with_values({hook: forward.values[hook]}), forward.logits)


@pytest.mark.parametrize("model", HOOKS)
def test_some_contexts_and_some_several_times(bridges, tokens, model):
    """At the MLP's output, beside which the stream of each context goes on."""
    bridge, hook = bridges[model], "blocks.2.hook_mlp_out"
    forward = Forward(bridge, tokens, [hook])
    rows = torch.tensor([2, 0, 0, 2, 1])
    given = another(forward.values[hook][rows])
    expected = whole(bridge, tokens[rows], {hook: given})
    same(forward.with_values({hook: given}, rows), expected)
    same(forward.with_values({hook: given[:1]}, rows[:1]), expected[:1])
    twice = another(forward.values[hook], copies=2)
    expected = whole(bridge, tokens.repeat(2, 1), {hook: twice})
    same(forward.with_values({hook: twice}), expected)


def test_several_points_of_several_blocks(bridges, tokens):
    bridge = bridges["embedded"]
    points = ["blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.3.hook_mlp_out"]
    forward = Forward(bridge, tokens, points)
    values = {point: another(forward.values[point]) for point in points}
    same(forward.with_values(values), whole(bridge, tokens, values))
    for point in points:
        some = {point: values[point]}
        same(forward.with_values(some), whole(bridge, tokens, some))


def test_blocks_before_the_point_are_not_computed_again(bridges, tokens):
    bridge, ran = bridges["embedded"], []
    handles = [
        block.attn.register_forward_pre_hook(lambda *_, n=n: ran.append(n))
        for n, block in enumerate(bridge.blocks)
    ]
    try:
        forward = Forward(bridge, tokens, ["blocks.2.hook_resid_pre"])
        first, ran[:] = ran[:], []
        forward.with_values(dict(forward.values))
    finally:
        for handle in handles:
            handle.remove()
    assert first == [0, 1, 2, 3]
    assert ran == [2, 3]


@pytest.mark.parametrize("model", HOOKS)
def test_the_model_is_left_as_it_was(bridges, tokens, model):
    bridge, hook = bridges[model], "blocks.2.hook_resid_pre"

    def state():
        return [(set(vars(b)), len(b._forward_hooks), len(b._forward_pre_hooks)) for b in blocks]

    blocks = [module for block in bridge.blocks for module in block.modules()]
    with torch.no_grad():
        before, logits = state(), bridge(tokens)
    forward = Forward(bridge, tokens, [hook])
    forward.with_values(dict(forward.values))
    with pytest.raises(RuntimeError):
        forward.with_values({hook: torch.zeros(CONTEXTS, WIDTH, 7)})
    with pytest.raises(UserError):
        Forward(bridge, tokens, ["no.such.hook"])
    assert state() == before
    with torch.no_grad():
        assert torch.equal(bridge(tokens), logits)
    same(forward.with_values(dict(forward.values)), forward.logits)


def test_no_gradients_and_no_surprises(bridges, tokens):
    bridge = bridges["embedded"]
    forward = Forward(bridge, tokens, ["blocks.2.hook_resid_pre"])
    assert not forward.logits.requires_grad
    assert not forward.with_values(dict(forward.values)).requires_grad
    with pytest.raises(UserError, match=r"closest are .*blocks\.2\.hook_resid_pre"):
        Forward(bridge, tokens, ["blocks.2.hook_resid_prr"])
    with pytest.raises(UserError, match="never reaches"):
        Forward(bridge, tokens, ["blocks.0.attn.qkv.hook_out"])
    with pytest.raises(UserError, match=r"300 tokens[\s\S]*up to 256"):
        Forward(bridge, torch.zeros(1, 300, dtype=torch.long), ["hook_embed"])


# --- losses


def test_cross_entropy_is_that_of_transformers(tokens):
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(EMBEDDED_FOLDER).eval()
    for context in tokens:
        with torch.no_grad():
            told = model(context[None], labels=context[None])
        ce, _ = losses(told.logits, context[None], Clean.of(told.logits))
        assert ce.shape == (1, WIDTH)
        assert ce[0, -1] == 0  # nothing is known to follow
        assert float(ce[0, :-1].mean()) == pytest.approx(told.loss.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_both_losses_against_torch_in_float64(dtype):
    draw = torch.Generator().manual_seed(3)
    p, q = (4 * torch.randn(2, 9, 50, generator=draw).to(dtype) for _ in range(2))
    tokens = torch.randint(50, (2, 9), generator=draw)
    ce, kl = losses(q, tokens, Clean.of(p))
    log_p, log_q = (x.double().log_softmax(-1) for x in (p, q))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)
    expected = torch.nn.functional.cross_entropy(
        q.double()[:, :-1].mT, tokens[:, 1:], reduction="none"
    )
    torch.testing.assert_close(ce[:, :-1].double(), expected, rtol=1e-5, atol=1e-5)
    assert (ce[:, -1] == 0).all()
    _, nothing = losses(p, tokens, Clean.of(p))
    assert nothing.abs().max() < 1e-5
