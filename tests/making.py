"""Members and rows to test with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from reference import CASES
from torch import Tensor

from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors, resolve

Pair = tuple[Tensors, Tensors]


def rows(count: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = generator(seed, "test rows", count, d)
    return torch.randn(count, d, generator=draw, dtype=torch.float64).to(dtype)


def member(
    name: str, d: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float64, **hyper: float
) -> Pair:
    """A member in general position: no zero bias, no unit row, no equal encoder and decoder."""
    signature, draw = resolve(name), generator(seed, "test member", name, d, n)
    hyper = {**CASES[name].hyper, **hyper}
    params, buffers = signature.init(d, n, generator=draw, **hyper)
    for key, tensor in params.items():
        params[key] = tensor + 0.3 * torch.randn(tensor.shape, generator=draw)
    exact = {key: torch.tensor(value, dtype=dtype) for key, value in hyper.items()}
    return cast(params, dtype), cast(buffers, dtype) | exact


def members(name: str, count: int, d: int, n: int, **options: Any) -> list[Pair]:
    return [member(name, d, n, seed=seed, **options) for seed in range(count)]


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return {key: tensor.to(dtype) for key, tensor in tensors.items()}


def copied(pair: Pair) -> Pair:
    params, buffers = ({k: t.clone() for k, t in tensors.items()} for tensors in pair)
    return params, buffers


def arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    return {key: tensor.detach().double().numpy() for key, tensor in tensors.items()}


def close(found: Tensors, expected: Tensors, tolerance: float) -> None:
    """Equal names, and values equal to `tolerance` of each tensor's largest."""
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        scale = float(expected[key].abs().max()) if expected[key].numel() else 0.0
        bounds = {"rtol": tolerance, "atol": tolerance * scale}
        torch.testing.assert_close({key: tensor}, {key: expected[key]}, **bounds)


def equal(found: Tensors, expected: Tensors) -> None:
    """The same bits."""
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key
