"""The references agree where two signatures coincide, and with what is known of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import Given, jumprelu_threshold_gradient, models, sparse
from reference.frame import numeric_gradient

D, N, B = 5, 8, 11
CENTRED = {"centring": "learned", "decoder_bias": True, "input_relu": True}
draw = np.random.default_rng(0)
X = draw.normal(size=(B, D))
PARAMS = {
    "encoder": draw.normal(size=(N, D)),
    "encoder_bias": draw.normal(size=N),
    "decoder": draw.normal(size=(N, D)),
    "decoder_bias": draw.normal(size=D),
    "centre": draw.normal(size=D),
    "log_threshold": np.full(N, -0.5),
    "log_gain": np.zeros(N),
    "threshold": np.full(N, np.exp(-0.5)),
    "gain": np.ones(1),
    "gate_bias": np.zeros(N),
    "magnitude_bias": np.zeros(N),
    "magnitude_scale": np.zeros(N),
}
STATE = {"threshold": np.array(-1.0), "prefix_weight": np.ones(1), "mask": np.ones(N)}
DECAYS = {"l1": 0.1, "bias_decay": 0.2}


def found(formula: Any, x: np.ndarray = X, params: Any = None, **options: Any) -> tuple:
    g = Given({**PARAMS, **(params or {})}, {**CENTRED, **options}, STATE)
    result = formula(g, x)
    return result.total, result.code, result.reconstruction, result.mse, result.l0


def same(one: tuple, other: tuple) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_signatures_that_coincide() -> None:
    plain = found(sparse.untied, l1=0.0, bias_decay=0.0)
    same(found(sparse.topk, k=N), plain)
    same(found(sparse.batchtopk, k=N)[:2], plain[:2])
    same(found(sparse.matryoshka, k=3.0, prefixes=1), found(sparse.batchtopk, k=3.0))
    same(found(sparse.noise, noise=0.7), plain)
    same(found(sparse.masked, **DECAYS), found(sparse.untied, **DECAYS))
    same(found(sparse.affine, l1=0.1), found(sparse.untied, l1=0.1, bias_decay=0.0))
    same(found(sparse.lp, l1=0.1, p=1.0, anneal=0.0), found(sparse.affine, l1=0.1))
    unit = found(
        sparse.untied, params={"encoder": PARAMS["decoder"]}, unit_norm="project", **DECAYS
    )
    same(found(sparse.tied, unit_norm="project", **DECAYS), unit)


def test_a_steep_threshold_is_a_jump() -> None:
    steep = found(sparse.thresholding, l1=0.0, bias_decay=0.0, width=1e-9)
    same(steep, found(sparse.jumprelu, l0_coefficient=0.0))


def test_the_gate_that_is_the_magnitude() -> None:
    """gate = mag = q: relu with the l1 of the gate, and the mse twice."""
    gated = found(sparse.gated, l1=0.1)
    affine = found(sparse.affine, params={"encoder_bias": np.zeros(N)}, l1=0.1)
    same(gated[1:], affine[1:])
    assert gated[0] - affine[0] == pytest.approx(affine[3], rel=1e-12)


def test_one_step_of_lista_is_an_encoder() -> None:
    params = {"encoder_bias": -PARAMS["threshold"]}
    options = {"decoder_bias": False, "l1": 0.0}
    code = found(models.lista, iterations=1, **options)[1]
    np.testing.assert_allclose(code, found(sparse.affine, params=params, **options)[1], rtol=1e-12)


def test_fista_finds_the_minimum() -> None:
    """Where c > 0 the gradient of the lasso is 0, elsewhere it is not below 0."""
    g = Given(PARAMS, {"l1": 0.05, "iterations": 3000}, {})
    result = models.fista(g, X)
    dictionary = PARAMS["decoder"] / np.linalg.norm(PARAMS["decoder"], axis=1, keepdims=True)
    gradient = (result.code @ dictionary - X) @ dictionary.T + 0.05 * D
    assert 0 < result.l0 < N
    assert np.abs(gradient[result.code > 0]).max() < 1e-8
    assert gradient.min() > -1e-8


def test_what_is_held_has_no_gradient() -> None:
    g = Given(PARAMS, {"l1": 0.05, "iterations": 5}, {})
    gradient = numeric_gradient(lambda: models.fista(g, X).total, {"decoder": PARAMS["decoder"]})
    code = models.fista(g, X).code
    norms = np.linalg.norm(PARAMS["decoder"], axis=1, keepdims=True)
    unit = PARAMS["decoder"] / norms
    d_unit = code.T @ (code @ unit - X) / X.size
    expected = (d_unit - (d_unit * unit).sum(1, keepdims=True) * unit) / norms
    np.testing.assert_allclose(gradient["decoder"], expected, rtol=1e-6, atol=1e-9)


def test_the_pseudo_gradient_is_that_of_a_smoothed_step() -> None:
    """Over many thresholds, the pseudo-gradient of the count is minus its density at t."""
    x = np.random.default_rng(1).normal(size=(4000, 1))
    params = {
        "encoder": np.ones((1, 1)),
        "encoder_bias": np.zeros(1),
        "decoder": np.zeros((1, 1)),
        "log_threshold": np.log([0.5]),
    }
    g = Given(params, {"l0_coefficient": 1.0, "bandwidth": 0.4}, {})
    density = np.exp(-(0.5**2) / 2) / np.sqrt(2 * np.pi)
    assert jumprelu_threshold_gradient(g, x)[0] == pytest.approx(-0.5 * density, rel=0.05)


def test_a_posterior_that_is_its_prior_has_no_divergence() -> None:
    """Encoders that do not read the row: the heads of a pseudo-input are those of the row."""
    zero = {f"{name}encoder": np.zeros((N, D)) for name in ("", "variance_", "spike_")}
    bias = {
        "encoder_bias": draw.normal(size=N),
        "variance_bias": draw.normal(size=N),
        "spike_bias": draw.normal(size=N),
    }
    pseudo = {
        "choice": np.ones((2, D)),
        "choice_bias": np.zeros(2),
        "pseudo_inputs": np.ones((2, D)),
    }
    gamma = 0.001 + 0.998 / (1 + np.exp(-bias["spike_bias"]))
    result = found(
        models.spike_slab_vae, params=zero | bias | pseudo, alpha=gamma.mean(), beta=100.0
    )
    assert result[0] == pytest.approx(result[3], rel=1e-12)
