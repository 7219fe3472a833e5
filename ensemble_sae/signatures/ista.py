"""Codes by iteration: fista solves for them, lista learns to."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures import frame, parts
from ensemble_sae.signatures.linear import LinearDictionary, Pass
from ensemble_sae.signatures.protocol import Tensors


class Fista(LinearDictionary):
    """c = the nonnegative minimum of 1/2 mean_d (c D^ - x)^2 + l1 sum_n c, by T steps of FISTA.

    From c_0 = y_0 = 0, with L the largest eigenvalue of D^^T D^:
        c_t = relu(y_{t-1} - ((y_{t-1} D^ - x) D^^T + l1 d) / L)
        y_t = c_t + m_t (c_t - c_{t-1}),  m_t = (s_t - 1) / s_{t+1}
    Loss: 1/2 mean over B and d of (x^ - x)^2 + l1 * mean_B sum_n c, with c held fixed: at the
    minimum the gradient through c vanishes, so that only D moves.

    Source: Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm", section 4
    (constant step size). Deviation: nonnegative codes, so that a feature has one direction.

    Params: `decoder [n, d]`. Buffers: `l1 []`, `momentum [T]` (m_t; its length is T).
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("decoder",)
    OPTIONS: ClassVar[dict[str, Any]] = dict(frame.OPTIONS)

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        iterations: int = 16,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = {"decoder": parts.random_directions(n_dict, d_activation, generator)}
        own: dict[str, float | Tensor] = {"l1": l1, "momentum": torch.tensor(momenta(iterations))}
        return cls.finish(params, own, d_activation, options)

    @classmethod
    def scores(cls, params: Tensors, buffers: Tensors, rows: Tensor, atoms: Tensor) -> Tensor:
        """The last iterate itself, `[B, n]`; carries no gradient."""
        rows, atoms = rows.detach(), atoms.detach()
        if "decoder_bias" in params:
            rows = rows - params["decoder_bias"].detach()
        step = 1 / largest_eigenvalue(atoms)
        shrink = buffers["l1"] * rows.shape[1] * step
        code = ahead = torch.zeros_like(rows @ atoms.mT)
        for momentum in buffers["momentum"]:
            before = code
            code = torch.relu(ahead - step * ((ahead @ atoms - rows) @ atoms.mT) - shrink)
            ahead = code + momentum * (code - before)
        return code

    @classmethod
    def error(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        return super().error(params, buffers, seen) / 2

    @classmethod
    def penalty(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        return buffers["l1"] * parts.mean_sum(seen.code)

    @classmethod
    def report(
        cls, params: Tensors, buffers: Tensors, batch: Tensor, seen: Pass, error: Tensor
    ) -> Tensors:
        return super().report(params, buffers, batch, seen, 2 * error)

    @classmethod
    def products(cls, hyperparameters: dict[str, Any]) -> float:
        """Two products per iteration, one to decode, one for D's gradient."""
        return 2.0 * hyperparameters["iterations"] + 2


class Lista(Fista):
    """c_t = relu(c_{t-1} + gain_t (x - c_{t-1} D^) E^T - threshold), T times from c_0 = 0.

    Loss: 1/2 mean over B and d of (x^ - x)^2 + l1 * mean_B sum_n c; the gradient flows through
    all iterations into E, D, the thresholds and the gains.

    Source: Gregor & LeCun 2010, "Learning Fast Approximations of Sparse Coding", section 3.
    Deviations: the lateral matrix is gain * (I - D^ E^T) and not free (the coupling of Chen et
    al. 2018, "Theoretical Linear Convergence of Unfolded ISTA", theorem 1), which costs B n d and
    not B n^2 per iteration; relu in the place of the two-sided shrinkage.

    Params: `encoder [n, d]`, `threshold [n]`, `gain [T]`, `decoder [n, d]`. Buffers: `l1 []`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("encoder", "threshold", "decoder")

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        iterations: int = 4,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        decoder = parts.random_directions(n_dict, d_activation, generator)
        step = 1 / (1 + math.sqrt(n_dict / d_activation)) ** 2  # 1 / L of a random dictionary
        params = {
            "encoder": decoder.clone(),
            "threshold": torch.zeros(n_dict),
            "gain": torch.full((iterations,), step),
            "decoder": decoder,
        }
        return cls.finish(params, {"l1": l1}, d_activation, options)

    @classmethod
    def scores(cls, params: Tensors, buffers: Tensors, rows: Tensor, atoms: Tensor) -> Tensor:
        """The last iterate before its relu."""
        if "decoder_bias" in params:
            rows = rows - params["decoder_bias"]
        encoder, threshold = params["encoder"], params["threshold"]
        code = scores = torch.zeros_like(rows @ encoder.mT)
        for gain in params["gain"]:
            scores = code + gain * ((rows - code @ atoms) @ encoder.mT) - threshold
            code = torch.relu(scores)
        return scores

    @classmethod
    def products(cls, hyperparameters: dict[str, Any]) -> float:
        """Two products per iteration, and twice that backwards."""
        return 6.0 * hyperparameters["iterations"] + 3


def momenta(iterations: int) -> list[float]:
    """m_t = (s_t - 1) / s_{t+1} with s_1 = 1, s_{t+1} = (1 + sqrt(1 + 4 s_t^2)) / 2."""
    found, s = [], 1.0
    for _ in range(iterations):
        after = (1 + math.sqrt(1 + 4 * s * s)) / 2
        found.append((s - 1) / after)
        s = after
    return found


def largest_eigenvalue(atoms: Tensor) -> Tensor:
    """Of D^^T D^, the Lipschitz constant of the squared error's gradient: `[n, d] -> []`."""
    n_dict, d = atoms.shape
    gram = atoms.mT @ atoms if d <= n_dict else atoms @ atoms.mT
    return torch.linalg.eigvalsh(gram)[-1]
