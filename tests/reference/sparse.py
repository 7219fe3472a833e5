"""Linear encoders: z = x E^T + b or the like, and a code that keeps some of z."""

from __future__ import annotations

import math

import numpy as np

from .frame import (
    Array,
    Arrays,
    Frame,
    Given,
    Result,
    keep_largest,
    length,
    mean_sum,
    mse,
    relu,
    revive,
)


def untied(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    return _l1_and_decay(f, _linear(f))


def tied(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    return _l1_and_decay(f, f.x @ f.D.T + g.p["encoder_bias"])


def affine(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z = _linear(f)
    code = relu(z)
    return f.result(code, f.mse(code) + g.h["l1"] * mean_sum(code) + revive(f, z, code))


def positive(g: Given, x0: Array) -> Result:
    return (tied if g.h["tied"] else untied)(g, x0)


def masked(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z = _linear(f)
    return _l1_and_decay(f, z, relu(z) * g.s["mask"])


def semilinear(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    hidden = relu(f.x @ g.p["hidden"].T + g.p["hidden_bias"])
    return _l1_and_decay(f, hidden @ g.p["encoder"].T + g.p["encoder_bias"])


def topk(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z = _linear(f)
    code = relu(np.array([keep_largest(row, g.h["k"]) for row in z]))
    return f.result(code, f.mse(code) + revive(f, z, code))


def batchtopk(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z = _linear(f)
    code, encoded, buffers = _over_the_batch(g, z)
    total = f.mse(code) + revive(f, z, code)
    return f.result(code, total, encoded=encoded, buffers=buffers)


def matryoshka(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z = _linear(f)
    code, encoded, buffers = _over_the_batch(g, z)
    total, n, prefixes = revive(f, z, code), z.shape[1], g.h["prefixes"]
    for m, weight in enumerate(g.s["prefix_weight"]):
        first = math.ceil(n / 2 ** (prefixes - 1 - m))
        total += weight * mse(code[:, :first] @ f.D[:first] + f.bias, f.x)
    return f.result(code, total, encoded=encoded, buffers=buffers)


def jumprelu(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z, t = _linear(f), np.exp(g.p["log_threshold"])
    code = np.where(z > t, z, 0.0)
    l0 = mean_sum(z > t)
    return f.result(code, f.mse(code) + g.h["l0_coefficient"] * l0 + revive(f, z, code))


def jumprelu_threshold_gradient(g: Given, x0: Array) -> Array:
    """d total / d log_threshold `[n]` by the pseudo-derivatives, one entry of z at a time.

    With R = [|z - t| < e / 2]: dc/dt = -(t / e) R; d[z > t]/dt = -(1 / e) R; dt/d log t = t.
    """
    f = Frame(g, x0)
    z, t, e = _linear(f), np.exp(g.p["log_threshold"]), g.h["bandwidth"]
    code = np.where(z > t, z, 0.0)
    rows, d = x0.shape
    d_code = 2 / (rows * d) * (f.y(code) - f.x) @ f.D.T
    d_count = g.h["l0_coefficient"] / rows
    found = np.zeros_like(t)
    for row in range(rows):
        for i in range(len(t)):
            if abs(z[row, i] - t[i]) < e / 2:
                d_t = d_code[row, i] * -(t[i] / e) + d_count * -(1 / e)
                found[i] += d_t * t[i]
    return found


def gated(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    q = f.x @ g.p["encoder"].T
    gate = q + g.p["gate_bias"]
    magnitude = q * np.exp(g.p["magnitude_scale"]) + g.p["magnitude_bias"]
    code = np.where(gate > 0, relu(magnitude), 0.0)
    frozen = g.stop_gradient("dictionary", (f.D.copy(), np.copy(f.bias)))
    through_gate = mse(relu(gate) @ frozen[0] + frozen[1], f.x)
    penalty = g.h["l1"] * mean_sum(relu(gate))
    return f.result(code, f.mse(code) + penalty + through_gate + revive(f, gate, code))


def thresholding(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z = _linear(f)
    u = np.clip((z - g.p["threshold"]) / g.h["width"] + 1 / 2, 0.0, 1.0)
    return _l1_and_decay(f, z, np.exp(g.p["log_gain"]) * relu(z) * u**2 * (3 - 2 * u))


def noise(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z = _linear(f)
    drawn = g.s.get("draw/code", np.zeros_like(z))
    code = relu(z + g.h["noise"] * drawn)
    return f.result(code, f.mse(code) + revive(f, z, code), encoded=relu(z))


def lp(g: Given, x0: Array) -> Result:
    f = Frame(g, x0)
    z = _linear(f)
    code, anneal = relu(z), g.h["anneal"]
    along = 1.0 if anneal == 0 else min(1.0, float(g.s["step"]) / anneal)
    p = 1 + (g.h["p"] - 1) * along
    penalty = g.h["l1"] * mean_sum((code + 1e-3) ** p - 1e-3**p)
    return f.result(code, f.mse(code) + penalty + revive(f, z, code))


def _linear(f: Frame) -> Array:
    return f.x @ f.g.p["encoder"].T + f.g.p["encoder_bias"]


def _l1_and_decay(f: Frame, z: Array, code: Array | None = None) -> Result:
    code, h = relu(z) if code is None else code, f.g.h
    penalty = h["l1"] * mean_sum(code) + h["bias_decay"] * length(f.g.p["encoder_bias"])
    return f.result(code, f.mse(code) + penalty + revive(f, z, code))


def _over_the_batch(g: Given, z: Array) -> tuple[Array, Array, Arrays]:
    """The code of the loss, the code of encode, and the next threshold."""
    rows, threshold = z.shape[0], float(g.s["threshold"])
    code = keep_largest(relu(z).reshape(-1), rows * g.h["k"]).reshape(z.shape)
    encoded = np.where(z >= threshold, relu(z), 0.0)
    kept = code[code > 0]
    after = threshold
    if kept.size:
        after = kept.min() if threshold < 0 else 0.99 * threshold + 0.01 * kept.min()
    return code, encoded, {"threshold": np.array(after)}
