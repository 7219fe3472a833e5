"""Edits inside a model, against transformers' own model with a hook written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import member
from torch.testing import assert_close

from ensemble_sae.data.units import Units
from ensemble_sae.errors import UserError
from ensemble_sae.inspection.directions import directions
from ensemble_sae.inspection.editing import edited
from ensemble_sae.lm.load import EMBEDDED_FOLDER, load_model, run_hooks
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.sweep import Member

HOOK, N, SCALE = "blocks.2.hook_resid_pre", 24, 17.0


def sae_of(hook=HOOK, d=128, seed=0, dtype=torch.float64, name="untied"):
    widths = (d, 128) if "->" in hook else (d,)
    options = {"widths": widths} if name == "transcoder" else {}
    params, buffers = member(name, sum(widths) if options else d, N, seed, dtype, **options)
    about = {"dict_ratio": 1.0, "lr": 1e-3, "grad_clip": None, "seed": 0, "hyperparameters": {}}
    config = Member(5, name, name, hook, d, n_dict=N, widths=widths, **about)
    shift = tuple(torch.linspace(-3, 3, d).tolist())
    units = Units(SCALE, shift)
    targets = Units(2.0) if options else None
    return Sae(config, BUILTIN[name], params, buffers, units, targets)


def move(sae, x, change):
    """What is added to x `[..., 128]`: written out, relu(E x + b) D / |D| in the SAE's units."""
    shift = torch.linspace(-3, 3, 128, dtype=torch.float64)
    z = (x - shift) / SCALE
    c = (z @ sae.params["encoder"].T + sae.params["encoder_bias"]).clamp_min(0)
    new = c.clone()
    change(new)
    atoms = sae.params["decoder"]
    atoms = atoms / atoms.square().sum(1, keepdim=True).sqrt()
    return SCALE * ((new - c) @ atoms), c


@pytest.fixture(scope="module")
def bridge():
    return load_model("embedded", dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def tokens(bridge):
    text = "def test_values(self):\n    self.assertEqual(len(found), 3)\n"
    first = torch.tensor(bridge.tokenizer(text)["input_ids"])
    return torch.stack([first, first.flip(0)])


@torch.no_grad()
def hooked(model, tokens, hooks):
    """transformers' logits with functions x -> x' in front of blocks."""
    handles = [
        model.transformer.h[layer].register_forward_pre_hook(
            lambda _, args, f=function: (f(args[0]), *args[1:])
        )
        for layer, function in hooks
    ]
    try:
        return model(tokens).logits
    finally:
        for handle in handles:
            handle.remove()


def change(code):
    code[..., 1] = 0
    code[..., 4] = 0
    code[..., 2] = 3.5
    code[..., 7] += 1.5


EDIT = {"ablate": [1, 4], "clamp": {2: 3.5}, "add": {7: 1.5}}


# --- values


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_edit_keeps_every_bit(dtype, tokens):
    bridge, sae = load_model("embedded", dtype=dtype), sae_of(dtype=dtype)
    plain = bridge(tokens)
    with edited(bridge, sae):
        assert torch.equal(bridge(tokens), plain)
    sae.params["encoder_bias"][3] = -1e6  # never fires: nothing to ablate
    with edited(bridge, sae, ablate=[3], add={5: 0.0}):
        assert torch.equal(bridge(tokens), plain)
    with edited(bridge, sae, ablate=range(N), positions=[]):
        assert torch.equal(bridge(tokens), plain)


def test_edits_equal_a_forward_by_hand(bridge, model, tokens):
    sae, codes = sae_of(), []

    def by_hand(x):
        delta, code = move(sae, x, change)
        codes.append(code)
        return x + delta

    expected = hooked(model, tokens, [(2, by_hand)])
    for feature in (1, 4):
        assert (codes[0][..., feature] > 0).any()  # there is something to ablate
    with edited(bridge, sae, **EDIT) as inside, torch.no_grad():
        assert inside is bridge
        found = bridge(tokens)
        through_hooks = bridge.run_with_hooks(tokens, fwd_hooks=[])
        through_cache, cache = bridge.run_with_cache(tokens)
    assert_close(found, expected)
    assert_close(through_hooks, expected)
    assert_close(through_cache, expected)
    with torch.no_grad():
        assert (bridge(tokens) - expected).abs().max() > 0.1  # it is an edit, and it is over
    x = run_hooks(bridge, tokens, [HOOK])[HOOK]
    assert_close(cache[HOOK], x + move(sae, x, change)[0])


@pytest.mark.parametrize("name", ["tied", "topk", "gated", "affine"])
def test_the_stream_moves_by_decoded_differences(bridge, tokens, name):
    sae = sae_of(name=name)
    x = run_hooks(bridge, tokens, [HOOK])[HOOK]
    code = sae.encode(x)
    new = code.clone()
    change(new)
    with edited(bridge, sae, **EDIT):
        found = run_hooks(bridge, tokens, [HOOK])[HOOK]
    assert_close(found, x + sae.decode(new) - sae.decode(code))
    assert_close(found - sae.decode(new), x - sae.decode(code))  # the SAE's error is kept


def test_projected_out(bridge, tokens):
    """What is left has no part along the directions; the rest is as it was."""
    sae = sae_of()
    sae.params["decoder"][9] = -2 * sae.params["decoder"][3]  # they depend on each other
    x = run_hooks(bridge, tokens, [HOOK])[HOOK]
    with edited(bridge, sae, project_out=[3, 9, 5], add={0: 2.0}):
        found = run_hooks(bridge, tokens, [HOOK])[HOOK]
    vectors = directions(sae).numpy()
    moved = x.reshape(-1, 128).numpy() + 2 * vectors[0]
    along = vectors[[3, 5]]
    weights = np.linalg.lstsq(along.T, moved.T, rcond=None)[0]
    assert_close(found.reshape(-1, 128), torch.from_numpy(moved - weights.T @ along))


def test_positions(bridge, tokens):
    sae = sae_of()
    x = run_hooks(bridge, tokens, [HOOK])[HOOK]
    everywhere = x + move(sae, x, change)[0]
    for positions, wanted in (
        ([0, 3], [0, 3]),
        (slice(4), [0, 1, 2, 3]),
        (slice(2, 9, 3), [2, 5, 8]),
        (slice(12, None), list(range(12, x.shape[1]))),
        ([400], []),
    ):
        with edited(bridge, sae, **EDIT, positions=positions):
            found = run_hooks(bridge, tokens, [HOOK])[HOOK]
        expected = x.clone()
        expected[:, wanted] = everywhere[:, wanted]
        assert_close(found, expected)


def test_edits_at_two_hooks_and_twice_at_one(bridge, model, tokens):
    first, second = sae_of("blocks.1.hook_resid_pre", seed=1), sae_of(seed=2)

    def ablate_0(code):
        code[..., 0] = 0

    def at_1(x):
        return x + move(first, x, change)[0]

    def at_2(x):
        x = x + move(second, x, ablate_0)[0]
        return x + move(second, x, change)[0]

    expected = hooked(model, tokens, [(1, at_1), (2, at_2)])
    with (
        torch.no_grad(),
        edited(bridge, first, **EDIT),
        edited(bridge, second, ablate=[0]),
        edited(bridge, second, **EDIT),
    ):
        assert_close(bridge(tokens), expected)


@torch.no_grad()
def test_a_transcoder_is_read_at_one_point_and_edits_the_other(bridge, model, tokens):
    """The MLP's output moves by what the code of the MLP's input says."""
    sae = sae_of("blocks.2.mlp.hook_in -> blocks.2.hook_mlp_out", name="transcoder")

    def by_hand(_, args, out):
        code = sae.encode(args[0])
        new = code.clone()
        change(new)
        return out + sae.decode(new) - sae.decode(code)

    handle = model.transformer.h[2].mlp.register_forward_hook(by_hand)
    try:
        expected = model(tokens).logits
    finally:
        handle.remove()
    with edited(bridge, sae, **EDIT):
        assert_close(bridge(tokens), expected)


def test_indices_may_be_of_a_tensor_or_an_array(bridge, tokens):
    sae, found = sae_of(), []
    tensors = {"ablate": torch.tensor([1, 4]), "clamp": {torch.tensor(2): torch.tensor(3.5)}}
    arrays = {"ablate": np.array([1, 4]), "clamp": {np.int64(2): np.float64(3.5)}}
    for edit in (EDIT, tensors, arrays):
        with edited(bridge, sae, **{**EDIT, **edit}, positions=torch.tensor([0, 3])):
            found.append(run_hooks(bridge, tokens, [HOOK])[HOOK])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# --- generation


def generated(bridge, tokens, cached):
    return bridge.generate(
        tokens[:1, :9],
        max_new_tokens=8,
        do_sample=False,
        stop_at_eos=False,
        use_past_kv_cache=cached,
        verbose=False,
        return_type="tokens",
    )


@pytest.mark.parametrize("positions", [None, slice(10, 13), [2, 11]])
def test_generation_with_and_without_a_cache(bridge, model, tokens, positions):
    sae, plain = sae_of(), generated(bridge, tokens, True)
    with edited(bridge, sae, add={7: 40.0}, ablate=[1], positions=positions):
        cached, uncached = (generated(bridge, tokens, way) for way in (True, False))
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, :9], tokens[:1, :9])
    assert not torch.equal(cached, plain)
    assert torch.equal(generated(bridge, tokens, True), plain)
    expected = tokens[:1, :9]  # greedy, by hand
    chosen = range(20) if positions is None else positions
    chosen = list(range(20))[chosen] if isinstance(chosen, slice) else list(chosen)

    def ablate_and_add(code):
        code[..., 1] = 0
        code[..., 7] += 40

    def by_hand(x):
        here = [p for p in chosen if p < x.shape[1]]
        x = x.clone()
        x[:, here] += move(sae, x[:, here], ablate_and_add)[0]
        return x

    for _ in range(8):
        logits = hooked(model, expected, [(2, by_hand)])
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached, expected)


# --- what is left behind


def fail_if(edits_are_there):
    assert edits_are_there
    raise KeyError("on purpose")


def test_the_model_is_as_before_after_an_exception(bridge, tokens):
    def handles():
        model = bridge.original_model
        points = {id(point): point for point in bridge.hook_dict.values()}.values()
        return (
            sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in points),
            len(model._forward_pre_hooks),
        )

    before = handles()
    apart = sae_of("blocks.1.mlp.hook_in -> blocks.2.hook_mlp_out", name="transcoder")
    with (
        pytest.raises(KeyError, match="on purpose"),
        edited(bridge, sae_of(), ablate=[1], positions=[0]),
        edited(bridge, apart, ablate=[1]),
    ):
        fail_if(handles() != before)
    assert handles() == before


@torch.no_grad()
def test_an_edit_outlives_the_clearing_of_other_hooks(bridge, tokens):
    with edited(bridge, sae_of(), **EDIT):
        found = bridge(tokens)
        bridge.reset_hooks()
        assert torch.equal(bridge(tokens), found)
        bridge.reset_hooks(including_permanent=True)
    bridge(tokens)


# --- mistakes


@pytest.mark.parametrize(
    ("sae", "edit", "says"),
    [
        (sae_of(), {"ablate": [N]}, rf"no such feature[\s\S]*ablate[\s\S]*{N}[\s\S]*0 to {N - 1}"),
        (sae_of(), {"add": {-1: 1.0}}, r"no such feature[\s\S]*add"),
        (sae_of(), {"project_out": [99]}, r"no such feature[\s\S]*project_out"),
        (sae_of(), {"ablate": [3], "clamp": {3: 1.0}}, r"more than one of[\s\S]*3"),
        (sae_of(), {"clamp": {3: float("nan")}}, r"not finite[\s\S]*feature 3"),
        (sae_of(), {"ablate": [True, False]}, r"edited\(ablate\)[\s\S]*True[\s\S]*give indices"),
        (sae_of(), {"ablate": torch.arange(N) > 3}, r"edited\(ablate\)[\s\S]*give indices"),
        (sae_of(), {"ablate": np.arange(N) > 3}, r"edited\(ablate\)[\s\S]*give indices"),
        (sae_of(), {"project_out": [True]}, r"edited\(project_out\)[\s\S]*give indices"),
        (sae_of(), {"add": {True: 1.0}}, r"edited\(add\)[\s\S]*give indices"),
        (sae_of(), {"positions": [True, False]}, r"edited\(positions\)[\s\S]*give indices"),
        (sae_of(), {"ablate": 3}, r"edited\(ablate\)[\s\S]*found: +3[\s\S]*a list of features"),
        (sae_of(), {"ablate": torch.tensor(3)}, r"edited\(ablate\)[\s\S]*a list of features"),
        (sae_of(), {"ablate": [1.5]}, r"edited\(ablate\)[\s\S]*1\.5[\s\S]*a list of features"),
        (sae_of(), {"clamp": [3]}, r"edited\(clamp\)[\s\S]*\[3\][\s\S]*a mapping"),
        (sae_of(), {"clamp": {1: "a"}}, r"edited\(clamp\)[\s\S]*\{1: 'a'\}[\s\S]*a mapping"),
        (sae_of(), {"add": {1: None}}, r"edited\(add\)[\s\S]*None[\s\S]*a mapping"),
        (sae_of(), {"positions": 3}, r"edited\(positions\)[\s\S]*3[\s\S]*numbers from 0 on"),
        (sae_of(), {"positions": slice("a")}, r"edited\(positions\)[\s\S]*numbers from 0 on"),
        (sae_of(), {"positions": [-1]}, "start of the context"),
        (sae_of(), {"positions": slice(-3, None)}, "start of the context"),
        (sae_of(d=64), {}, r"member 5: blocks\.2\.hook_resid_pre[\s\S]*64 values[\s\S]*128 values"),
        (sae_of("blocks.2.hook_resid_pr"), {}, r"no such hook[\s\S]*blocks\.2\.hook_resid_pre"),
        (sae_of("blocks.2.attn.hook_z"), {}, r"one vector per token"),
        (sae_of("blocks.2.hook_resid_mid"), {}, r"what the MLP reads"),
        (sae_of(f"{HOOK} + blocks.1.hook_resid_pre"), {}, "side by side"),
        (sae_of(""), {}, "no hook"),
    ],
)
def test_mistakes_are_told_before_anything_is_edited(bridge, sae, edit, says):
    with pytest.raises(UserError, match=says), edited(bridge, sae, **edit):
        pytest.fail("never entered")


def test_a_hook_that_is_read_too_late(bridge, tokens):
    sae = sae_of(f"blocks.3.hook_mlp_out -> {HOOK}", name="transcoder")
    with edited(bridge, sae, ablate=[1]), pytest.raises(UserError, match="only after"):
        bridge(tokens)
