"""Every signature in every way to set it up, against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from making import arrays, at_width, cast, close, copied, drawn, equal, given, init, member, rows
from reference import (
    CASES,
    Case,
    Result,
    crosscoder_norms,
    jumprelu_threshold_gradient,
    momenta,
    numeric_gradient,
)
from reference.names import buffer_names, param_names
from torch import Tensor
from torch.func import grad, vmap

from ensemble_sae.errors import UserError
from ensemble_sae.randomness import generator
from ensemble_sae.signatures import BUILTIN, Tensors, hyperparameters

D, N, B = 5, 8, 11
TABLE = [
    pytest.param(name, case, id=f"{name}: {case.id}")
    for name, cases in CASES.items()
    for case in cases
]
every_case = pytest.mark.parametrize(("name", "case"), TABLE)
every = pytest.mark.parametrize("name", BUILTIN)


def tensors(values: dict[str, Any]) -> Tensors:
    return {key: torch.as_tensor(value, dtype=torch.float64) for key, value in values.items()}


def told(result: Result) -> Tensors:
    """What the loss says of itself, by the reference."""
    moved = {f"buffers/{key}": value for key, value in result.buffers.items()}
    names = {"total": result.total, "mse": result.mse, "l0": result.l0, "fired": result.fired}
    return tensors({**names, **moved})


def told_by(signature: Any, params: Tensors, buffers: Tensors, x: Tensor) -> Tensors:
    total, aux = signature.loss(params, buffers, x)
    return {"total": total, **{key: value.to(total.dtype) for key, value in aux.items()}}


# --- the table is complete


def test_every_signature_has_a_reference() -> None:
    assert CASES.keys() == BUILTIN.keys()


@every
def test_every_hyperparameter_is_in_the_table(name: str) -> None:
    ours = {k: v for k, v in CASES[name][0].options.items() if k != "widths"}
    found = hyperparameters(BUILTIN[name])
    assert ours.keys() == found.keys()
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in found.items()}


CENTRED = ("tied_centered", "affine", "topk", "batchtopk", "matryoshka", "gated")


@every
def test_options_are_off_unless_said(name: str) -> None:
    frame = {"input_relu", "centring", "whitening", "decoder_bias", "unit_norm", "revive"}
    usual = {"input_relu": False, "centring": "none", "whitening": False}
    usual |= {"decoder_bias": name == "jumprelu", "unit_norm": "loss", "revive": "none"}
    usual |= {"centring": "learned"} if name in CENTRED else {}
    found = {k: v for k, v in hyperparameters(BUILTIN[name]).items() if k in frame}
    assert found == {k: v for k, v in usual.items() if k in found}


@every_case
def test_names_and_shapes_of_tensors(name: str, case: Case) -> None:
    (params, buffers), (wider, _) = (
        init(name, at_width(case, D), D, n, generator(0, "init")) for n in (N, N + 1)
    )
    assert params.keys() == param_names(name, case)
    assert buffers.keys() == buffer_names(name, case)
    features = {key for key in params if params[key].shape != wider[key].shape}
    assert features == params.keys() & set(BUILTIN[name].FEATURES)
    for key in features:
        assert (params[key].shape[0], wider[key].shape[0]) == (N, N + 1)
        assert params[key].shape[1:] == wider[key].shape[1:]


# --- values and gradients


@every_case
@pytest.mark.parametrize("seed", [0, 1])
def test_values_follow_the_formula(name: str, case: Case, seed: int) -> None:
    signature, x = BUILTIN[name], rows(B, D, seed)
    params, buffers = member(name, D, N, seed, case=case)
    handed = drawn(case, buffers, B, N, seed)
    expected = case.result(given(case, (params, handed)), x.numpy())
    close(told_by(signature, params, handed, x), told(expected), 1e-12)
    encoded = signature.encode(params, buffers, x)
    found = {
        "encoded": encoded,
        "reconstruction": signature.decode(params, buffers, encoded),
        "target": target(signature, params, buffers, x),
    }
    wanted = {key: getattr(expected, key) for key in found}
    close(found, tensors(wanted), 1e-12)


@every
def test_codes_of_the_table_are_neither_empty_nor_full(name: str) -> None:
    """So that the other tests mean something. rica's is full by design."""
    for case in CASES[name]:
        pair = member(name, D, N, case=case)
        result = case.result(given(case, pair), rows(B, D).numpy())
        assert 0 < result.l0 < N or name == "rica", case.id
        assert 0 < np.count_nonzero(result.encoded) < result.encoded.size or name == "rica", case.id


# Losses that hold something without gradient, or have a pseudo-gradient: no function's derivative.
HELD = ("jumprelu", "gated", "fista")


def is_smooth(name: str, case: Case) -> bool:
    helped = case.options.get("revive") == "aux_k" and case.state.get("dead") != 0.0
    return name not in HELD and not helped


@pytest.mark.parametrize(("name", "case"), [entry for entry in TABLE if is_smooth(*entry.values)])
def test_gradients_pass_gradcheck(name: str, case: Case) -> None:
    params, buffers = member(name, D, 5, case=case)
    buffers, x = drawn(case, buffers, 6, 5), rows(6, D)

    def total(*values: Tensor) -> Tensor:
        at = dict(zip(params, values, strict=True))
        return BUILTIN[name].loss(at, buffers, x).total

    leaves = [value.requires_grad_() for value in params.values()]
    assert torch.autograd.gradcheck(total, leaves, atol=1e-6, rtol=1e-5)


@every_case
def test_gradients_are_those_of_the_formula(name: str, case: Case) -> None:
    """Differences of the reference, what a formula holds without gradient being held."""
    n, count = 5, 6
    params, buffers = member(name, D, n, case=case)
    buffers, x = drawn(case, buffers, count, n), rows(count, D)
    found = grad(lambda p: BUILTIN[name].loss(p, buffers, x).total)(params)
    g = given(case, (params, buffers))
    case.result(g, x.numpy())  # takes hold
    expected = numeric_gradient(lambda: case.result(g, x.numpy()).total, g.p)
    if name == "jumprelu":
        expected["log_threshold"] = jumprelu_threshold_gradient(g, x.numpy())
        assert np.count_nonzero(expected["log_threshold"]) > n / 2
    close(found, tensors(expected), 1e-6)


@every_case
def test_float32_is_float64_to_rounding(name: str, case: Case) -> None:
    params, buffers = member(name, D, N, case=case)
    buffers, x = drawn(case, buffers, B, N), rows(B, D)
    exact = told_by(BUILTIN[name], params, buffers, x)
    rough = told_by(
        BUILTIN[name], cast(params, torch.float32), cast(buffers, torch.float32), x.float()
    )
    assert {tensor.dtype for tensor in rough.values()} == {torch.float32}
    close({key: tensor.double() for key, tensor in rough.items()}, exact, 2e-5)


# --- the parts fit together


@every_case
def test_loss_sees_what_encode_and_decode_give(name: str, case: Case) -> None:
    """Without draws; where the loss ranks over the batch, at the threshold it finds itself."""
    signature, x = BUILTIN[name], rows(B, D)
    params, buffers = member(name, D, N, case=case)
    if "buffers/threshold" in told_by(signature, params, buffers, x):
        buffers["threshold"].fill_(-1)
        buffers["threshold"] = signature.loss(params, buffers, x).aux["buffers/threshold"]
    aux = signature.loss(params, buffers, x).aux
    code = signature.encode(params, buffers, x)
    error = signature.decode(params, buffers, code) - target(signature, params, buffers, x)
    active = (code != 0).double()
    expected = {
        "mse": error.square().mean(),
        "l0": active.sum(1).mean(),
        "fired": active.sum(0),
    }
    close({key: aux[key].double() for key in expected}, expected, 1e-12)


@every_case
def test_dictionary_and_projection(name: str, case: Case) -> None:
    signature, (params, buffers) = BUILTIN[name], member(name, D, N, case=case)
    params["decoder"][2] = 0.0
    before = copied((params, buffers))
    projected = signature.project(params, buffers)
    equal(params, before[0])  # nothing in place
    close(signature.project(projected, buffers), projected, 1e-15)
    others = [key for key in params if key != "decoder"]
    equal({k: projected[k] for k in others}, {k: params[k] for k in others})
    decoder = params["decoder"].clamp_min(0) if name == "positive" else params["decoder"]
    if case.options.get("unit_norm") == "project":
        decoder = decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-300)
    close({"decoder": projected["decoder"]}, {"decoder": decoder}, 1e-15)
    directions = signature.dictionary(projected, buffers)
    norms = torch.ones(N, dtype=torch.float64)
    norms[2] = 0.0
    torch.testing.assert_close(directions.norm(dim=1), norms, rtol=1e-14, atol=0)
    cosine = (directions * decoder).sum(1) - decoder.norm(dim=1)
    assert cosine.abs().max() < 1e-14


@every_case
def test_init_is_a_function_of_its_generator(name: str, case: Case) -> None:
    case = at_width(case, D)
    first, again, other = (init(name, case, D, N, generator(s, "init")) for s in (0, 0, 1))
    equal(first[0], again[0])
    equal(first[1], again[1])
    assert not torch.equal(first[0]["decoder"], other[0]["decoder"])
    assert {t.dtype for tensors in first for t in tensors.values()} == {torch.float32}
    numbers = {k: torch.tensor(v, dtype=torch.float32) for k, v in case.hyper.items()}
    equal({key: first[1][key] for key in numbers}, numbers)
    if name == "positive":
        assert first[0]["decoder"].min() >= 0
        assert torch.equal(first[0]["encoder_bias"], numbers["bias_start"].expand(N))
    if name == "jumprelu":
        expected = numbers["threshold_start"].log().expand(N)
        torch.testing.assert_close(first[0]["log_threshold"], expected)
    if name == "thresholding":
        assert torch.equal(first[0]["threshold"], numbers["threshold_start"].expand(N))


@every
def test_defaults_suffice(name: str) -> None:
    widths = {k: v for k, v in CASES[name][0].options.items() if k == "widths"}
    case = CASES[name][0]._replace(options=widths)
    params, buffers = init(name, case, D, N, generator(0, "init"))
    assert BUILTIN[name].loss(params, buffers, rows(B, D).float()).total.isfinite()


# --- a stack


def spread(case: Case, k: int) -> Case:
    """The case with other values in every hyper-parameter that may vary within a stack."""

    def other(name: str, value: float) -> float:
        whole = name in ("k", "aux_k") or value == 0
        return value + k if whole else value * (1 + 0.3 * k)

    options = {name: other(name, value) for name, value in case.hyper.items()}
    return case._replace(options={**case.options, **options})


@every_case
def test_hyperparameters_may_differ_within_a_stack(name: str, case: Case) -> None:
    cases, x = [spread(case, k) for k in range(3)], rows(B, D)
    pairs = []
    for k, own in enumerate(cases):
        params, buffers = member(name, D, N, case=own)
        pairs.append((params, drawn(case, buffers, B, N, seed=k)))
    params, buffers = (
        {key: torch.stack([tensors[key] for tensors in part]) for key in part[0]}
        for part in zip(*pairs, strict=True)
    )
    stacked = vmap(lambda p, b: told_by(BUILTIN[name], p, b, x))(params, buffers)
    slopes = vmap(grad(lambda p, b: BUILTIN[name].loss(p, b, x).total))(params, buffers)
    for k, (pair, own) in enumerate(zip(pairs, cases, strict=True)):
        expected = told(own.result(given(own, pair), x.numpy()))
        close({key: tensor[k] for key, tensor in stacked.items()}, expected, 1e-12)
        alone = grad(lambda p, b=pair[1]: BUILTIN[name].loss(p, b, x).total)(pair[0])
        close({key: tensor[k] for key, tensor in slopes.items()}, alone, 1e-11)


# --- edges

BIASES = ("encoder_bias", "gate_bias", "magnitude_bias", "spike_bias")


def at_the_edge(edge: str, name: str, pair: tuple[Tensors, Tensors], x: Tensor) -> Tensor:
    """Move a member, in place, or the rows, which are given back."""
    params, buffers = pair
    level = {"zero bias": 0.0, "silent": -100.0, "dense": 1.0}.get(edge)
    for key in BIASES:
        if level is not None and key in params:
            params[key].fill_(level)
    if edge == "silent" and name == "fista":
        buffers["l1"].fill_(1e3)
    if edge == "silent" and name == "lista":
        params["threshold"].fill_(1e3)
    if edge == "zero decoder row":
        params["decoder"][2] = 0.0
    for key in ("dead", "mask"):
        if edge == f"all {key}" and key in buffers:
            buffers[key].fill_(key == "dead")
    return torch.zeros_like(x) if edge == "zero rows" else x


EDGES = ["zero bias", "silent", "dense", "zero decoder row", "zero rows", "all dead", "all mask"]


@every_case
def test_edges_are_finite(name: str, case: Case) -> None:
    signature = BUILTIN[name]
    for edge in EDGES:
        params, buffers = member(name, D, N, dtype=torch.float32, case=case)
        buffers = drawn(case, buffers, B, N)
        x = at_the_edge(edge, name, (params, buffers), rows(B, D).float())
        slopes = grad(lambda p, b=buffers, x=x: signature.loss(p, b, x).total)(params)
        found = told_by(signature, params, buffers, x)
        assert all(tensor.isfinite().all() for tensor in found.values()), edge
        assert all(slope.isfinite().all() and slope.norm() < 1e3 for slope in slopes.values()), edge
        if edge == "silent" and name not in ("rica", "semilinear"):
            assert found["l0"] == 0
            assert not found["fired"].any()


# --- what single signatures have


def target(signature: Any, params: Tensors, buffers: Tensors, x: Tensor) -> Tensor:
    function = getattr(signature, "target", None)
    return x if function is None else function(params, buffers, x)


FRAMED = [p for p in TABLE if p.values[1].options.keys() & {"input_relu"}]


@pytest.mark.parametrize(("name", "case"), FRAMED)
def test_fit_sets_the_frame(name: str, case: Case) -> None:
    params, buffers = init(name, case, D, N, generator(0, "init"))
    sample = rows(200, D).float() @ torch.diag(torch.linspace(0.5, 3, D)) + 1.0
    fitted, frame = BUILTIN[name].fit(params, buffers, sample)
    seen = sample.double()
    seen = seen.clamp_min(0) if case.options["input_relu"] else seen
    touched = {"centre", "whitening", "unwhitening"}
    equal({k: t for k, t in fitted.items() if k not in touched}, without(params, touched))
    equal({k: t for k, t in frame.items() if k not in touched}, without(buffers, touched))
    centre = {**fitted, **frame}.get("centre")
    if centre is not None:
        torch.testing.assert_close(centre.double(), seen.mean(0), rtol=1e-6, atol=1e-6)
    if case.options["whitening"]:
        whitening, back = frame["whitening"].double(), frame["unwhitening"].double()
        white = (seen - seen.mean(0)) @ whitening
        identity = torch.eye(D, dtype=torch.float64)
        torch.testing.assert_close(white.mT @ white / len(white), identity, rtol=0, atol=1e-5)
        torch.testing.assert_close(whitening @ back, identity, rtol=0, atol=1e-5)
        torch.testing.assert_close(whitening, whitening.mT, rtol=0, atol=1e-6)  # ZCA
        assert torch.linalg.eigvalsh(whitening).min() > 0


def without(params: Tensors, names: set[str]) -> Tensors:
    return {key: tensor for key, tensor in params.items() if key not in names}


def test_a_singular_covariance_is_told() -> None:
    params, buffers = BUILTIN["tied"].init(D, N, generator=generator(0, ""), whitening=True)
    sample = rows(50, D).float()
    sample[:, 1] = sample[:, 0]
    with pytest.raises(UserError, match="singular"):
        BUILTIN["tied"].fit(params, buffers, sample)


@pytest.mark.parametrize("case", CASES["masked"], ids=lambda c: c.id)
def test_padding_changes_nothing(case: Case) -> None:
    signature, x, more = BUILTIN["masked"], rows(B, D), 3
    params, buffers = member("masked", D, N, case=case)
    wide = signature.pad(params, buffers, N + more)
    narrow_told, wide_told = (told_by(signature, p, b, x) for p, b in ((params, buffers), wide))
    assert not wide_told["fired"][N:].any()
    wide_told["fired"] = wide_told["fired"][:N]
    close(wide_told, narrow_told, 1e-14)
    code = signature.encode(*wide, x)
    assert not code[:, N:].any()
    torch.testing.assert_close(code[:, :N], signature.encode(params, buffers, x))
    slopes = grad(lambda p: signature.loss(p, wide[1], x).total)(wide[0])
    assert all(not slopes[key][N:].any() for key in ("encoder", "encoder_bias", "decoder"))
    equal({k: wide[0][k][: len(t)] for k, t in params.items()}, params)
    assert set(wide[1]) == set(buffers)
    assert not wide[1]["mask"][N:].any()


@pytest.mark.parametrize("case", CASES["crosscoder"], ids=lambda c: c.id)
def test_norms_of_a_crosscoder(case: Case) -> None:
    pair = member("crosscoder", D, N, case=case)
    found = BUILTIN["crosscoder"].layer_norms(*pair).numpy()
    np.testing.assert_allclose(found, crosscoder_norms(given(case, pair)), rtol=1e-12)


def test_a_transcoder_reads_rows_with_or_without_their_target() -> None:
    signature, x = BUILTIN["transcoder"], rows(B, D)
    pair = member("transcoder", D, N)
    assert torch.equal(signature.encode(*pair, x), signature.encode(*pair, x[:, :3]))
    assert torch.equal(signature.target(*pair, x), x[:, 3:])


def test_a_threshold_is_not_moved_by_an_empty_code() -> None:
    params, buffers = member("batchtopk", D, N)
    params["encoder_bias"].fill_(-100.0)
    aux = BUILTIN["batchtopk"].loss(params, buffers, rows(B, D)).aux
    assert aux["buffers/threshold"] == buffers["threshold"]


def test_momentum_of_fista_is_made_by_init() -> None:
    _, buffers = BUILTIN["fista"].init(D, N, generator=generator(0, ""), iterations=3)
    np.testing.assert_allclose(arrays(buffers)["momentum"], momenta(3), rtol=1e-6)
