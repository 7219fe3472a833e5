"""Signatures that say what their hook must be, and nothing else."""

from __future__ import annotations

import torch

from ensemble_sae.signatures import Tensors


class Predicts:
    """Takes a target."""

    TAKES_TARGET = True

    @staticmethod
    def init(d: int, n: int, *, generator: torch.Generator) -> tuple[Tensors, Tensors]:
        return {"w": torch.zeros(n, d)}, {}

    @staticmethod
    def loss(
        params: Tensors, buffers: Tensors, batch: torch.Tensor
    ) -> tuple[torch.Tensor, Tensors]:
        return params["w"].sum(), {}


class Reads2(Predicts):
    """Reads two hook points or more."""

    TAKES_TARGET = False
    LEAST_POINTS = 2
