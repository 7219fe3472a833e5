"""What most signatures are: an encoder of their own, and a linear dictionary in a frame.

    x = enter(batch);  z = scores(x);  c = code(z);  y = c D^ + decoder_bias
    total = mse(y, x) + penalty + revival

A subclass says how it starts (`start`), what its scores and its code are, and its penalty. The
frame's and the revival's options come with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.signatures import frame, parts, revival
from ensemble_sae.signatures.protocol import Loss, Tensors


class Pass(NamedTuple):
    """One forward pass: x `[B, d]`, D^ `[n, d]`, z and c `[B, n]`, y `[B, d]`."""

    rows: Tensor
    atoms: Tensor
    scores: Tensor
    code: Tensor
    reconstruction: Tensor


class LinearDictionary:
    """Encode, decode, loss and projection of every signature with a linear dictionary."""

    FEATURES: ClassVar[tuple[str, ...]] = ("encoder", "encoder_bias", "decoder")
    OPTIONS: ClassVar[dict[str, Any]] = frame.OPTIONS | revival.OPTIONS

    @classmethod
    def finish(
        cls,
        params: Tensors,
        buffers: Mapping[str, float | Tensor],
        d_activation: int,
        options: dict[str, Any],
    ) -> tuple[Tensors, Tensors]:
        """A member from its own tensors, its numbers (scalar buffers) and its options."""
        tensors = {
            name: value if isinstance(value, Tensor) else torch.tensor(float(value))
            for name, value in buffers.items()
        }
        chosen = cls.OPTIONS | options
        frame.add(params, tensors, d_activation, chosen)
        if "revive" in chosen:
            revival.add(tensors, params["decoder"].shape[0], chosen)
        return params, tensors

    @classmethod
    def fit(cls, params: Tensors, buffers: Tensors, rows: Tensor) -> tuple[Tensors, Tensors]:
        """Centre and whitening from a sample of rows `[S, d]`."""
        return frame.fit(params, buffers, rows)

    @classmethod
    def scores(cls, params: Tensors, buffers: Tensors, rows: Tensor, atoms: Tensor) -> Tensor:
        """z = x E^T + b: `[B, d] -> [B, n]`."""
        return parts.affine(rows, params["encoder"], params["encoder_bias"])

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        """c = relu(z): `[B, n] -> [B, n]`, as encoded."""
        return torch.relu(scores)

    @classmethod
    def training_code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        """c in the loss, where that differs from what is encoded."""
        return cls.code(params, buffers, scores)

    @classmethod
    def penalty(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor | float:
        """What is added to the squared error."""
        return 0.0

    @classmethod
    def enter(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        """Rows as the dictionary sees them: centred, whitened."""
        return frame.enter(params, buffers, batch)

    @classmethod
    def encode(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        rows, atoms = frame.enter(params, buffers, batch), frame.dictionary(params, buffers)
        return cls.code(params, buffers, cls.scores(params, buffers, rows, atoms))

    @classmethod
    def decode(cls, params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        rows = frame.combine(params, code, frame.dictionary(params, buffers))
        return frame.leave(params, buffers, rows)

    @classmethod
    def dictionary(cls, params: Tensors, buffers: Tensors) -> Tensor:
        return parts.unit_rows(params["decoder"])

    @classmethod
    def target(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return frame.target(params, buffers, batch)

    @classmethod
    def forward(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Pass:
        """One pass as the loss sees it."""
        rows, atoms = frame.enter(params, buffers, batch), frame.dictionary(params, buffers)
        scores = cls.scores(params, buffers, rows, atoms)
        code = cls.training_code(params, buffers, scores)
        return Pass(rows, atoms, scores, code, frame.combine(params, code, atoms))

    @classmethod
    def error(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        """mean over B and d of (y - x)^2."""
        return parts.mean_squared_error(seen.reconstruction, seen.rows)

    @classmethod
    def loss(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Loss:
        seen = cls.forward(params, buffers, batch)
        error = cls.error(params, buffers, seen)
        total = error + cls.penalty(params, buffers, seen)
        if "dead" in buffers:
            residual = seen.rows - seen.reconstruction
            total = total + revival.loss(buffers, seen.scores, residual, seen.atoms)
        return Loss(total, cls.report(params, buffers, batch, seen, error))

    @classmethod
    def report(
        cls, params: Tensors, buffers: Tensors, batch: Tensor, seen: Pass, error: Tensor
    ) -> Tensors:
        """What a step tells of itself."""
        mse = frame.mean_squared_error(params, buffers, seen.reconstruction, batch, error)
        return {"mse": mse, **parts.activity(seen.code)}

    @classmethod
    def project(cls, params: Tensors, buffers: Tensors) -> Tensors:
        return frame.project(params, buffers)


def encoder_start(n_dict: int, d_activation: int, generator: torch.Generator) -> Tensors:
    """Random unit atoms, an encoder equal to them, no bias.

    E starts equal to D, which leaves fewer features dead than two independent draws.
    """
    decoder = parts.random_directions(n_dict, d_activation, generator)
    return {
        "encoder": decoder.clone(),
        "encoder_bias": torch.zeros(n_dict),
        "decoder": decoder,
    }
