"""Codes that are inferred, drawn, or not of one place: everything but a linear encoder."""

from __future__ import annotations

import itertools

import numpy as np

from .frame import Array, Frame, Given, Result, mean_sum, mse, outcome, relu, unit_rows


def rica(g: Given, x0: Array) -> Result:
    f = Frame(g, x0, dictionary=g.p["decoder"])
    code, beta = f.x @ f.D.T, g.h["beta"]
    size = np.abs(code)
    smooth = size if beta == 0 else np.where(size < beta, code**2 / (2 * beta), size - beta / 2)
    return f.result(code, f.mse(code) + g.h["l1"] * mean_sum(smooth))


def fista(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    code = g.stop_gradient("code", np.array([_fista_row(f, row) for row in f.x]))
    penalty = g.stop_gradient("penalty", g.h["l1"] * mean_sum(code))
    return f.result(code, f.mse(code) / 2 + penalty)


def _fista_row(f: Frame, x: Array) -> Array:
    """Beck & Teboulle 2009, section 4, on 1/2 ||c D + bias - x||^2 + l1 d sum c with c >= 0."""
    dictionary, l1 = f.D, f.g.h["l1"] * len(x)
    lipschitz = np.linalg.eigvalsh(dictionary.T @ dictionary).max()
    code = y = np.zeros(len(dictionary))
    for momentum in momenta(f.g.h["iterations"]):
        descent = ((y @ dictionary + f.bias - x) @ dictionary.T + l1) / lipschitz
        last, code = code, relu(y - descent)
        y = code + momentum * (code - last)
    return code


def momenta(iterations: int) -> list[float]:
    """(s_t - 1) / s_{t+1}, s_1 = 1, s_{t+1} = (1 + sqrt(1 + 4 s_t^2)) / 2."""
    s = [1.0]
    for _ in range(iterations):
        s.append((1 + np.sqrt(1 + 4 * s[-1] ** 2)) / 2)
    return [(now - 1) / after for now, after in itertools.pairwise(s)]


def lista(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    code = np.zeros((len(x0), len(f.D)))
    for t in range(g.h["iterations"]):
        error = f.x - f.y(code)
        code = relu(code + g.p["gain"][t] * error @ g.p["encoder"].T - g.p["threshold"])
    return f.result(code, f.mse(code) / 2 + g.h["l1"] * mean_sum(code))


def spike_slab_vae(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    mu, log_var, gamma = _heads(g, f.x)
    encoded = np.where(gamma > 1 / 2, mu, 0.0)
    code = encoded
    if "draw/spike" in g.s:
        spike = _sigmoid(50 * (g.s["draw/spike"] - 1 + gamma))
        code = spike * (mu + np.exp(log_var / 2) * g.s["draw/slab"])
    pseudo = _softmax(f.x @ g.p["choice"].T + g.p["choice_bias"]) @ g.p["pseudo_inputs"]
    mu_u, log_var_u, gamma_u = _heads(g, pseudo)
    ratio = (np.exp(log_var) + (mu - mu_u) ** 2) / (2 * np.exp(log_var_u))
    slab = gamma * ((log_var_u - log_var) / 2 + ratio - 1 / 2)
    kl = mean_sum(slab + _bernoulli(gamma, gamma_u))
    prior = gamma.shape[1] * _bernoulli(np.mean(gamma_u), g.h["alpha"])
    total = f.mse(code) + g.h["beta"] * kl + g.h["beta"] * prior
    return f.result(code, total, encoded=encoded, counted=encoded)


def _heads(g: Given, x: Array) -> tuple[Array, Array, Array]:
    mu = x @ g.p["encoder"].T + g.p["encoder_bias"]
    log_var = x @ g.p["variance_encoder"].T + g.p["variance_bias"]
    spike = _sigmoid(x @ g.p["spike_encoder"].T + g.p["spike_bias"])
    return mu, log_var, 0.001 + 0.998 * spike


def _bernoulli(p: Array, q: Array) -> Array:
    """KL(Bernoulli(p) || Bernoulli(q))."""
    return (1 - p) * np.log((1 - p) / (1 - q)) + p * np.log(p / q)


def _sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def _softmax(z: Array) -> Array:
    return np.array([np.exp(row) / np.sum(np.exp(row)) for row in z])


def transcoder(g: Given, x0: Array) -> Result:
    d_in, _ = g.h["widths"]
    x, target = x0[:, :d_in], x0[:, d_in:]
    dictionary, bias = unit_rows(g.p["decoder"]), g.p["decoder_bias"]
    code = relu(x @ g.p["encoder"].T + g.p["encoder_bias"])
    total = mse(code @ dictionary + bias, target) + g.h["l1"] * mean_sum(code)
    return outcome(lambda c: c @ dictionary + bias, target, code, total)


def crosscoder(g: Given, x0: Array) -> Result:
    decoder, bias = g.p["decoder"], g.p["decoder_bias"]
    code = relu(x0 @ g.p["encoder"].T + g.p["encoder_bias"])
    norms = crosscoder_norms(g)
    penalty = mean_sum(code * norms.sum(1))
    total = mse(code @ decoder + bias, x0) + g.h["l1"] * penalty
    return outcome(lambda c: c @ decoder + bias, x0, code, total)


def crosscoder_norms(g: Given) -> Array:
    """`[n, L]`: the length of each feature's decoder row in each layer."""
    edges = np.cumsum([0, *g.h["widths"]])
    return np.array(
        [
            [np.sqrt(np.sum(row[a:b] ** 2)) for a, b in itertools.pairwise(edges)]
            for row in g.p["decoder"]
        ]
    )
