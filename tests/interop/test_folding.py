"""Folded members against the members themselves, and files against formulas written out here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from interop.members import CASES, REFUSED, D, member, rows
from safetensors.torch import load_file

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.interop import (
    dictionary_learning,
    from_dictionary_learning,
    from_saelens,
    plain,
    saelens,
    sparsify,
)
from ensemble_sae.interop.about import About
from ensemble_sae.interop.folding import fold
from ensemble_sae.interop.kinds import kind_of

every = pytest.mark.parametrize("case", CASES)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=2e-5)


@every
def test_a_folded_member_is_the_same_function(case: str) -> None:
    sae = member(*CASES[case])
    folded, x = fold(sae), rows()
    close(folded(x), sae(x))
    code, own = folded.encode(x), sae.encode(x)
    assert ((code != 0) == (own != 0)).float().mean() > 0.999  # ties with a threshold
    # A code is the length of what it adds: c_f D_f, D_f a unit row.
    base = sae.decode(torch.zeros(1, 20))
    for feature in range(0, 20, 7):
        alone = torch.zeros_like(own)
        alone[:, feature] = own[:, feature]
        length = (sae.decode(alone) - base).norm(dim=1)
        if kind_of(folded) != "topk" or "whitened" not in case:
            torch.testing.assert_close(code[:, feature].abs(), length, rtol=1e-3, atol=1e-4)


@every
def test_rows_of_the_decoder_have_unit_norm(case: str) -> None:
    folded = fold(member(*CASES[case]))
    norms = folded.params["decoder"].norm(dim=1)
    if case == "topk, whitened":  # which are largest would change
        assert not torch.allclose(norms, torch.ones(20), atol=1e-2)
    else:
        torch.testing.assert_close(norms, torch.ones(20), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("signature", REFUSED)
def test_what_is_no_such_function_is_refused(signature: str) -> None:
    with pytest.raises(UserError, match="cannot be written") as caught:
        fold(member(signature, {}))
    assert "member 3" in str(caught.value.where)
    assert REFUSED[signature] in str(caught.value.found)


def test_input_relu_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be written") as caught:
        fold(member("tied", {"input_relu": True}))
    assert "input_relu" in str(caught.value.found)


# --- the files, read back by hand


def by_saelens(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Their mathematics, from FORMATS: f of (x W_enc + b_enc), x^ = f W_dec + b_dec."""
    w = load_file(folder / "sae_weights.safetensors")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["normalize_activations"] == "none"
    assert config["apply_b_dec_to_input"] is False
    assert (config["d_in"], config["d_sae"]) == (12, 20) == tuple(w["W_enc"].shape)
    pre = x @ w["W_enc"]
    if config["architecture"] == "gated":
        size = torch.relu(pre * w["r_mag"].exp() + w["b_mag"])
        code = size * (pre + w["b_gate"] > 0)
    else:
        pre = pre + w["b_enc"]
        code = torch.relu(pre)
    if config["architecture"] == "jumprelu":
        code = code * (pre > w["threshold"])
    if config["architecture"] == "topk":
        best = pre.topk(config["k"], dim=1)
        code = torch.zeros_like(pre).scatter(1, best.indices, torch.relu(best.values))
    return code, code @ w["W_dec"] + w["b_dec"]


def by_dictionary_learning(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    w = torch.load(folder / "ae.pt", weights_only=True)
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    name = trainer["dict_class"]
    if name == "JumpReluAutoEncoder":
        pre = x @ w["W_enc"] + w["b_enc"]
        code = torch.relu(pre) * (pre > w["threshold"])
        return code, code @ w["W_dec"] + w["b_dec"]
    bias = {"AutoEncoder": "bias", "AutoEncoderTopK": "b_dec", "GatedAutoEncoder": "decoder_bias"}
    shift = w[bias[name]]
    pre = (x - shift) @ w["encoder.weight"].T
    if name == "GatedAutoEncoder":
        size = torch.relu(pre * w["r_mag"].exp() + w["mag_bias"])
        code = size * (pre + w["gate_bias"] > 0)
    else:
        code = torch.relu(pre + w["encoder.bias"])
    if name == "AutoEncoderTopK":
        assert trainer["k"] == int(w["k"])
        best = code.topk(trainer["k"], dim=1)
        code = torch.zeros_like(code).scatter(1, best.indices, best.values)
    return code, code @ w["decoder.weight"].T + shift


READERS = {saelens: by_saelens, dictionary_learning: by_dictionary_learning}


@every
@pytest.mark.parametrize("form", READERS, ids=lambda form: form.__name__.rpartition(".")[2])
def test_files_compute_the_same_by_their_formulas(case: str, form, tmp_path: Path) -> None:
    sae, x = member(*CASES[case]), rows()
    folded = fold(sae)
    form.write(folded, tmp_path, About(hook="blocks.0.hook_resid_pre"))
    code, again = READERS[form](tmp_path, x)
    close(again, sae(x))
    close(code, folded.encode(x))


@every
def test_what_is_written_is_read_again(case: str, tmp_path: Path) -> None:
    folded, x = fold(member(*CASES[case])), rows()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    saelens.write(folded, tmp_path / "a", About())
    dictionary_learning.write(folded, tmp_path / "b", About())
    for back in (from_saelens(tmp_path / "a"), from_dictionary_learning(tmp_path / "b")):
        assert kind_of(back) == kind_of(folded)
        close(back.encode(x), folded.encode(x))
        close(back(x), folded(x))
        close(back.dictionary, folded.dictionary)


def test_sparsify_takes_topk_alone(tmp_path: Path) -> None:
    sae, x = member(*CASES["topk"]), rows()
    sparsify.write(fold(sae), tmp_path, About())
    w = load_file(tmp_path / "sae.safetensors")
    config = json.loads((tmp_path / "cfg.json").read_text())
    code = torch.relu((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    best = code.topk(config["k"], dim=1)
    code = torch.zeros_like(code).scatter(1, best.indices, best.values)
    close(code @ w["W_dec"] + w["b_dec"], sae(x))
    with pytest.raises(UserError, match="k largest"):
        sparsify.write(fold(member("tied", {})), tmp_path, About(text="tied"))


def test_plain_safetensors_say_what_they_are(tmp_path: Path) -> None:
    sae, x = member(*CASES["gated"]), rows()
    plain.write(fold(sae), tmp_path, About(hook="here"))
    w = load_file(tmp_path / "sae.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["kind"], config["d_in"], config["hook"]) == ("gated", D, "here")
    pre = x @ w["encoder"].T + w["encoder_bias"]
    size = torch.relu(pre * w["magnitude_scale"].exp() + w["magnitude_bias"])
    code = size * (pre + w["gate_bias"] > 0)
    close(code @ w["decoder"] + w["decoder_bias"], sae(x))


# --- dictionaries of others


def test_a_decoder_bias_that_is_taken_off_the_input(tmp_path: Path) -> None:
    """`apply_b_dec_to_input`: relu((x - b_dec) W_enc + b_enc)."""
    for case in ("untied", "gated", "topk"):
        folder = tmp_path / case
        folder.mkdir()
        saelens.write(fold(member(*CASES[case])), folder, About())
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": True}))
        w, x = load_file(folder / "sae_weights.safetensors"), rows()
        code, again = by_saelens_shifted(folder, x - w["b_dec"])
        found = from_saelens(folder)
        close(found.encode(x), code)
        close(found(x), again)


def by_saelens_shifted(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": False}))
    found = by_saelens(folder, x)
    (folder / "cfg.json").write_text(json.dumps(config))
    return found


@pytest.mark.parametrize(
    ("key", "value"),
    [("architecture", "transcoder"), ("normalize_activations", "layer_norm")],
)
def test_what_is_not_known_of_a_dictionary_is_said(tmp_path: Path, key: str, value: str) -> None:
    saelens.write(fold(member("tied", {})), tmp_path, About())
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match="not known here") as caught:
        from_saelens(tmp_path)
    assert value in str(caught.value.found)
    assert key in str(caught.value.where)


def test_a_hostile_torch_file_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "touched"), "w"))

    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CorruptFile, match="read safely"):
        from_dictionary_learning(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_missing_tensors_and_unknown_classes(tmp_path: Path) -> None:
    torch.save({"bias": torch.zeros(2)}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    with pytest.raises(CorruptFile, match="lacks a tensor"):
        from_dictionary_learning(tmp_path)
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoderX"}}')
    with pytest.raises(UserError, match="not known here") as caught:
        from_dictionary_learning(tmp_path)
    assert "AutoEncoder" in str(caught.value.allowed)
    with pytest.raises(UserError, match="missing"):
        from_saelens(tmp_path / "nothing")
