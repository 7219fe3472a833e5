"""Members and rows to test with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from reference import CASES, Case, Given, momenta
from torch import Tensor

from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors, resolve

Pair = tuple[Tensors, Tensors]


def rows(count: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = generator(seed, "test rows", count, d)
    return torch.randn(count, d, generator=draw, dtype=torch.float64).to(dtype)


def member(
    name: str,
    d: int,
    n: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    case: Case | None = None,
    **options: Any,
) -> Pair:
    """A member in general position: no zero bias, no unit row, no equal encoder and decoder.

    `case`: how it is set up, by default the signature's first in the table.
    """
    case = at_width(case or CASES[name][0], d)
    case = case._replace(options={**case.options, **options})
    draw = generator(seed, "test member", name, d, n)
    params, buffers = init(name, case, d, n, draw)
    for key, tensor in params.items():
        params[key] = tensor + 0.3 * torch.randn(tensor.shape, generator=draw)
    buffers |= _state(buffers, case.state, draw)
    exact = {key: torch.tensor(value, dtype=dtype) for key, value in case.hyper.items()}
    return cast(params, dtype), cast(buffers, dtype) | exact


def members(name: str, count: int, d: int, n: int, **options: Any) -> list[Pair]:
    return [member(name, d, n, seed=seed, **options) for seed in range(count)]


def init(name: str, case: Case, d: int, n: int, draw: torch.Generator) -> Pair:
    """What the signature makes for rows of width d. A transcoder reads the first part of a row."""
    width = case.options["widths"][0] if name == "transcoder" else d
    return resolve(name).init(width, n, generator=draw, **case.options)


def at_width(case: Case, d: int) -> Case:
    """The case with `widths`, if it has any, that sum to d."""
    if "widths" not in case.options:
        return case
    first = case.options["widths"][:-1]
    return case._replace(options={**case.options, "widths": (*first, d - sum(first))})


def drawn(case: Case, buffers: Tensors, count: int, n: int, seed: int = 0) -> Tensors:
    """The buffers with the draws that the case hands to the loss."""
    draw, found = generator(seed, "test draws"), dict(buffers)
    dtype = next(iter(buffers.values())).dtype
    for name, distribution in case.draws.items():
        make = {"normal": torch.randn, "uniform": torch.rand}[distribution]
        found[name] = make(count, n, generator=draw, dtype=torch.float64).to(dtype)
    return found


def given(case: Case, pair: Pair) -> Given:
    """What the reference reads, in arrays of its own."""
    params, buffers = (arrays(tensors) for tensors in pair)
    state = {key: value for key, value in buffers.items() if key not in case.hyper}
    return Given(params, case.options, state)


def _state(buffers: Tensors, chosen: Mapping[str, float], draw: torch.Generator) -> Tensors:
    """Values in general position for buffers that start at 0 or 1."""
    found: Tensors = {}
    for name, tensor in buffers.items():
        noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
        if name in chosen:
            found[name] = torch.full_like(tensor, chosen[name])
        elif name == "centre":
            found[name] = 0.3 * noise
        elif name in ("dead", "mask"):
            found[name] = (torch.arange(len(tensor)) % 3 > 0).to(tensor)
        elif name == "threshold":
            found[name] = torch.full_like(tensor, 0.4)
        elif name == "prefix_weight":
            found[name] = 0.5 + noise.abs()
        elif name == "momentum":
            found[name] = torch.tensor(momenta(len(tensor)), dtype=torch.float64)
        elif name == "whitening":
            found[name] = torch.eye(len(tensor)) + 0.1 * (noise + noise.mT)
            found["unwhitening"] = torch.linalg.inv(found[name])
    return found


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return {key: tensor.to(dtype) for key, tensor in tensors.items()}


def copied(pair: Pair) -> Pair:
    params, buffers = ({k: t.clone() for k, t in tensors.items()} for tensors in pair)
    return params, buffers


def arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    return {key: tensor.detach().double().numpy().copy() for key, tensor in tensors.items()}


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
