"""What all linear dictionaries share: the frame around the code, and the terms that revive.

x0 `[B, d]` rows; x1 rows after `input_relu`; x rows in the frame's coordinates, which the encoder
reads and the decoder is measured in. c `[B, n]` the code. z `[B, n]` what the code is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Arrays = dict[str, np.ndarray]

FRAME = {
    "input_relu": False,
    "centring": "none",
    "whitening": False,
    "decoder_bias": False,
    "unit_norm": "loss",
}
REVIVE = {"revive": "none", "aux_k": 64.0, "aux_weight": 1 / 32}


class Given:
    """One member: `p` params, `h` what init was given, `s` buffers that are no hyper-parameters."""

    def __init__(self, params: Arrays, options: Mapping[str, Any], state: Arrays) -> None:
        self.p, self.h, self.s = params, {**FRAME, **REVIVE, **options}, state
        self._held: dict[str, Any] = {}

    def stop_gradient(self, name: str, value: Any) -> Any:
        """`value` at the first call, and the same ever after, whatever the params become."""
        return self._held.setdefault(name, value)


class Result(NamedTuple):
    """One SAE on one batch. `code` is the loss', `encoded` is what `encode` gives."""

    total: float
    code: Array
    encoded: Array
    reconstruction: Array  # of `encoded`
    target: Array
    mse: float  # of `code`, in the units of the rows
    l0: float
    fired: Array
    buffers: Arrays  # the values that buffers take after the step


def unit_rows(matrix: Array) -> Array:
    return np.array([row / np.sqrt(np.sum(row**2)) if row.any() else row for row in matrix])


def relu(z: Array) -> Array:
    return np.where(z > 0, z, 0.0)


def mse(a: Array, b: Array) -> float:
    return float(np.mean((a - b) ** 2))


def mean_sum(values: Array) -> float:
    """Mean over the rows of the sum over the features."""
    return float(np.mean([np.sum(row) for row in values]))


def length(vector: Array) -> float:
    return float(np.sqrt(np.sum(vector**2)))


class Frame:
    """Rows on their way in and reconstructions on their way out."""

    def __init__(self, g: Given, x0: Array, dictionary: Array | None = None) -> None:
        self.g, identity = g, np.eye(x0.shape[1])
        self.x1 = np.maximum(x0, 0.0) if g.h["input_relu"] else x0
        self.centre = {"none": {"centre": 0.0}, "mean": g.s, "learned": g.p}[g.h["centring"]][
            "centre"
        ]
        self.whitening = g.s["whitening"] if g.h["whitening"] else identity
        self.unwhitening = g.s["unwhitening"] if g.h["whitening"] else identity
        self.bias = g.p["decoder_bias"] if g.h["decoder_bias"] else 0.0
        self.x = (self.x1 - self.centre) @ self.whitening
        if dictionary is None:
            raw = g.p["decoder"]
            dictionary = unit_rows(raw) if g.h["unit_norm"] == "loss" else raw
        self.D = dictionary

    def y(self, code: Array) -> Array:
        """The reconstruction in the frame's coordinates."""
        return code @ self.D + self.bias

    def decode(self, code: Array) -> Array:
        """The reconstruction in the units of the rows."""
        return self.y(code) @ self.unwhitening + self.centre

    def mse(self, code: Array) -> float:
        return mse(self.y(code), self.x)

    def result(
        self,
        code: Array,
        total: float,
        *,
        encoded: Array | None = None,
        counted: Array | None = None,
        buffers: Arrays | None = None,
    ) -> Result:
        """`counted`: the code of which l0 and fired are told, where it is not the loss'."""
        return outcome(self.decode, self.x1, code, total, encoded, counted, buffers)


def outcome(
    decode: Callable[[Array], Array],
    target: Array,
    code: Array,
    total: float,
    encoded: Array | None = None,
    counted: Array | None = None,
    buffers: Arrays | None = None,
) -> Result:
    encoded = code if encoded is None else encoded
    counted = code if counted is None else counted
    return Result(
        total=float(total),
        code=code,
        encoded=encoded,
        reconstruction=decode(encoded),
        target=target,
        mse=mse(decode(code), target),
        l0=float(np.mean([np.count_nonzero(row) for row in counted])),
        fired=np.array([np.count_nonzero(feature) for feature in counted.T]),
        buffers=buffers or {},
    )


def revive(f: Frame, z: Array, code: Array) -> float:
    """What is added to the total for the sake of dead features."""
    h = f.g.h
    if h["revive"] == "none":
        return 0.0
    dead = f.g.s["dead"]
    if h["revive"] == "pre_act":
        return h["aux_weight"] * mean_sum(dead * relu(-z))
    if not dead.any():
        return 0.0
    error = f.g.stop_gradient("error", f.x - f.y(code))
    largest = [keep_largest(row, h["aux_k"]) for row in relu(z) * dead]
    return h["aux_weight"] * mse(np.array(largest) @ f.D, error)


def keep_largest(values: Array, k: float) -> Array:
    """The entries that are at least the k-th largest, the others 0."""
    ordered = sorted(values, reverse=True)
    return values if k >= len(values) else np.where(values >= ordered[int(k) - 1], values, 0.0)


def numeric_gradient(total: Callable[[], float], params: Arrays, step: float = 2e-6) -> Arrays:
    """Central differences of `total()`, which reads the arrays that are moved here in place."""
    found = {name: np.zeros_like(array) for name, array in params.items()}
    for name, array in params.items():
        for index in np.ndindex(array.shape):
            here, values = array[index], []
            for moved in (here + step, here - step):
                array[index] = moved
                values.append(total())
            array[index] = here
            found[name][index] = (values[0] - values[1]) / (2 * step)
    return found
