"""A signature that predicts the rows of one hook point from those of others, with traps."""

from __future__ import annotations

from typing import Any

import torch
import traps
from torch import Tensor

from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors

D_TARGET = 6  # values per row of the only target there is, so that `init` need not be told


class Predicts:
    """c = relu(x E^T); t^ = c D + b. A row of a batch is (x, t)."""

    TAKES_TARGET = True

    @staticmethod
    def init(
        d_activation: int, n_dict: int, *, generator: torch.Generator, l1: float = 1e-3
    ) -> tuple[Tensors, Tensors]:
        params = {
            "encoder": torch.randn(n_dict, d_activation, generator=generator) / d_activation**0.5,
            "decoder": torch.randn(n_dict, D_TARGET, generator=generator) / n_dict**0.5,
            "bias": torch.zeros(D_TARGET),
        }
        return params, {"l1": torch.tensor(l1)}

    @staticmethod
    def encode(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return torch.relu(batch[:, : params["encoder"].shape[1]] @ params["encoder"].mT)

    @staticmethod
    def decode(params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return code @ params["decoder"] + params["bias"]

    @staticmethod
    def target(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        return batch[:, params["encoder"].shape[1] :]

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> Any:
        traps.spring()
        code = Predicts.encode(params, buffers, batch)
        error = Predicts.decode(params, buffers, code) - Predicts.target(params, buffers, batch)
        mse = error.square().mean()
        aux = {"mse": mse.detach(), "l0": (code > 0).float().sum(1).mean()}
        return mse + buffers["l1"] * code.sum(1).mean(), aux


def aligned(chunks: int, d: int = 8) -> dict[str, Tensor]:
    """Rows of hook points "a" `[N, d]`, "b" `[N, 6]` (which follows from a) and "ab", both."""
    draw = generator(0, "pairs", chunks, d)
    a = torch.randn(640 * chunks, d, generator=draw) * 3 + 1
    b = a @ torch.randn(d, D_TARGET, generator=draw) / d - 2
    b += 0.01 * torch.randn(b.shape, generator=draw)
    return {"a": a, "b": b, "ab": torch.cat([a, b], 1)}
