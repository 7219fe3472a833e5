"""Loading, hooks, and the forward pass that ends at the last of them."""

import logging
import subprocess
import sys

import pytest
import torch

from ensemble_sae.errors import UserError
from ensemble_sae.lm.load import (
    EMBEDDED_FOLDER,
    check_hooks,
    checked_device,
    hook_names,
    load_model,
    run_hooks,
    run_with,
)

HOOKS = ["blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out"]


@pytest.fixture(scope="module")
def bridge():
    return load_model("embedded")


@pytest.fixture(scope="module")
def tokens(bridge):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(bridge.cfg.d_vocab, (3, 40), generator=generator)
    tokens[:, 0] = tokens[1, 7] = tokens[2, -1] = 0  # <|endoftext|>, which is also the padding
    return tokens


def test_what_the_bridge_says(bridge):
    config = bridge.cfg
    assert (config.n_layers, config.d_model, config.n_ctx, config.d_vocab) == (4, 128, 256, 4096)
    assert not bridge.training
    assert {p.dtype for p in bridge.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_those_of_transformers(dtype, tokens):
    from transformers import GPT2LMHeadModel

    reference = GPT2LMHeadModel.from_pretrained(EMBEDDED_FOLDER, dtype=getattr(torch, dtype))
    with torch.no_grad():
        states = reference.eval()(tokens, output_hidden_states=True).hidden_states
    hooks = ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"]
    values = run_hooks(load_model("embedded", dtype=dtype), tokens, hooks)
    for hook, layer in zip(hooks, (0, 2, 3), strict=True):
        # Entries near zero carry the rounding of the largest ones in their row.
        scale = states[layer].abs().max().item() * (1e-6 if dtype == "float32" else 1e-14)
        torch.testing.assert_close(values[hook], states[layer], rtol=1e-5, atol=scale)


def test_values_are_those_of_run_with_cache(bridge, tokens):
    hooks = [*HOOKS, "blocks.0.attn.hook_z", "hook_embed", "blocks.3.hook_resid_post"]
    _, cache = bridge.run_with_cache(tokens, names_filter=hooks)
    for hook, value in run_hooks(bridge, tokens, hooks).items():
        torch.testing.assert_close(value, cache[hook], rtol=0, atol=0)


def test_only_the_named_hooks_in_the_order_asked(bridge, tokens):
    values = run_hooks(bridge, tokens, HOOKS)
    assert list(values) == HOOKS
    assert all(value.shape == (3, 40, 128) for value in values.values())
    assert not any(value.requires_grad or value.is_inference() for value in values.values())


def test_two_names_of_one_place(bridge, tokens):
    names = ["blocks.2.hook_in", "blocks.2.hook_resid_pre"]
    first, second = run_hooks(bridge, tokens, names).values()
    assert torch.equal(first, second)


def test_the_forward_ends_at_the_last_hook_and_leaves_no_trace(bridge, tokens):
    ran = []
    handles = [
        module.register_forward_pre_hook(lambda *_, n=n: ran.append(n))
        for n, module in enumerate(bridge.original_model.transformer.h)
    ]
    try:
        run_hooks(bridge, tokens, ["blocks.2.hook_resid_pre"])
        stopped, ran[:] = ran[:], []
        logits = bridge(tokens)
    finally:
        for handle in handles:
            handle.remove()
    assert stopped in ([0, 1], [0, 1, 2])  # block 2 is entered at most, 3 never
    assert ran == [0, 1, 2, 3]
    assert logits.shape == (3, 40, 4096)


def test_nothing_of_the_third_block_is_computed(bridge, tokens):
    fired = []
    inside = bridge.blocks[2].attn.hook_in
    handle = inside.register_forward_hook(lambda *_: fired.append("attention of block 2"))
    try:
        run_hooks(bridge, tokens, ["blocks.2.hook_resid_pre"])
        assert fired == []
        run_hooks(bridge, tokens, ["blocks.2.hook_resid_post"])
        assert fired
    finally:
        handle.remove()


def test_unknown_hooks(bridge, tokens):
    assert "blocks.3.hook_resid_post" in hook_names(bridge)
    check_hooks(bridge, HOOKS)
    with pytest.raises(UserError, match=r"no such hook[\s\S]*blocks\.2\.hook_resid_pre"):
        check_hooks(bridge, ["blocks.2.hook_resid_pr"])
    with pytest.raises(UserError, match=r"blocks\.0 to blocks\.3[\s\S]*blocks\.3\.hook_mlp_out"):
        run_hooks(bridge, tokens, ["blocks.7.hook_mlp_out"])
    with pytest.raises(UserError, match=r"closest are .*resid_pre"):
        check_hooks(bridge, ["resid_pre"])


def test_hooks_that_do_not_fire(bridge, tokens):
    with pytest.raises(UserError, match="switched off"):
        run_hooks(bridge, tokens, ["blocks.0.attn.hook_result"])
    with pytest.raises(UserError, match="never reaches"):
        run_hooks(bridge, tokens, ["blocks.0.attn.qkv.hook_out", "hook_embed"])


def test_contexts_that_are_too_long(bridge):
    with pytest.raises(UserError, match=r"257 tokens[\s\S]*up to 256"):
        run_hooks(bridge, torch.zeros(1, 257, dtype=torch.long), HOOKS)


def test_other_dtype_by_name():
    bridge = load_model(str(EMBEDDED_FOLDER), dtype="bfloat16")
    assert {p.dtype for p in bridge.parameters()} == {torch.bfloat16}


def test_unknown_model_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be fetched[\s\S]*--local-dir FOLDER"):
        load_model("nobody/no-such-model")


@pytest.mark.parametrize("name", ["./no-such-folder", "a/b/c", ""])
def test_neither_folder_nor_name(name):
    with pytest.raises(UserError, match="neither an existing folder nor a name"):
        load_model(name or "no such name")


def test_folder_without_config(tmp_path):
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UserError, match=r"no config\.json[\s\S]*weights\.bin"):
        load_model(str(tmp_path))


def test_damaged_folder(tmp_path):
    for path in EMBEDDED_FOLDER.iterdir():
        if path.is_file():
            content = path.read_bytes()
            cut = 1000 if path.name == "model.safetensors" else len(content)
            (tmp_path / path.name).write_bytes(content[:cut])
    with pytest.raises(UserError, match="could not be loaded"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_no_such_device(device):
    with pytest.raises(UserError, match=r"device[\s\S]*cpu"):
        load_model("embedded", device=device)


def test_devices_that_are_there():
    assert checked_device("cpu") == checked_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UserError, match=r"cuda:99[\s\S]*cpu"):
        checked_device("cuda:99")


def test_a_context_that_begins_with_bos_is_not_called_padded(bridge, tokens):
    logger, lines = logging.getLogger("transformers.modeling_utils"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    before = list(logger.filters)
    try:
        type(logger).warning_once.cache_clear()
        run_hooks(bridge, tokens, HOOKS)
        run_with(bridge, tokens, [])
        assert lines == []
        type(logger).warning_once.cache_clear()
        bridge(tokens)  # whoever asks transformers hears it
        assert "attention_mask" in lines[0]
    finally:
        logger.removeHandler(handler)
    assert logger.filters == before


def test_import_is_light():
    code = "import sys, ensemble_sae.lm.load; print('transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
