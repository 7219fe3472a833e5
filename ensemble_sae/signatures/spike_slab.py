"""Variational sparse coding: a posterior of spikes and slabs, a prior of learned pseudo-inputs."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.signatures import frame, parts
from ensemble_sae.signatures.linear import LinearDictionary, Pass
from ensemble_sae.signatures.protocol import Loss, Tensors

STEEPNESS = 50.0  # of the relaxed spike; the paper's c
EDGE = 0.001  # the probability of a spike stays this far from 0 and 1


class Posterior(NamedTuple):
    """Per row and feature, `[B, n]`: slab mean, log of the slab's variance, spike probability."""

    mean: Tensor
    log_variance: Tensor
    spike: Tensor


class SpikeSlabVae(LinearDictionary):
    """q(c | x) = gamma N(mu, sigma^2) + (1 - gamma) delta(0), heads linear in x;  x^ = c D^.

    Loss (a negative ELBO, the squared error a mean over d):
        mean (x^ - x)^2 + beta * mean_B KL(q(. | x) || q(. | x_u)) + beta * n kl(gbar || alpha)
    c is a relaxed sample, T (mu + sigma eps), T = sigmoid(50 (eta - 1 + gamma)). The prior is the
    posterior of a pseudo-input x_u chosen for the row; gbar, the pseudo-inputs' mean spike
    probability, is drawn to alpha. Encoded is mu where gamma > 1/2; it may be negative.

    Source: Tonolini et al. 2020, "Variational Sparse Coding", sections 3.2 to 3.4. Deviations: x_u
    is a softmax mixture of the pseudo-inputs, not the single best one; encoder and decoder are
    linear; beta scales the divergences and is constant.

    Params: `encoder`, `variance_encoder`, `spike_encoder [n, d]` with `encoder_bias`,
    `variance_bias`, `spike_bias [n]`; `decoder [n, d]`; `pseudo_inputs`, `choice [M, d]`,
    `choice_bias [M]`. Buffers: `alpha []`, `beta []`; `draw/spike`, `draw/slab [B, n]` from the
    ensemble, at every step.
    """

    FEATURES: ClassVar[tuple[str, ...]] = (
        "encoder",
        "encoder_bias",
        "variance_encoder",
        "variance_bias",
        "spike_encoder",
        "spike_bias",
        "decoder",
    )
    OPTIONS: ClassVar[dict[str, Any]] = dict(frame.OPTIONS)
    DRAWS: ClassVar[dict[str, str]] = {"spike": "uniform", "slab": "normal"}

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        alpha: float = 0.05,
        beta: float = 1e-3,
        pseudo: int = 16,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        decoder = parts.random_directions(n_dict, d_activation, generator)
        flat = torch.zeros(n_dict, d_activation)
        params = {
            "encoder": decoder.clone(),
            "encoder_bias": torch.zeros(n_dict),
            "variance_encoder": flat.clone(),
            "variance_bias": torch.full((n_dict,), -2.0),
            "spike_encoder": decoder.clone(),
            "spike_bias": torch.full((n_dict,), -1.0),
            "decoder": decoder,
            "pseudo_inputs": torch.randn(pseudo, d_activation, generator=generator),
            "choice": parts.random_directions(pseudo, d_activation, generator),
            "choice_bias": torch.zeros(pseudo),
        }
        return cls.finish(params, {"alpha": alpha, "beta": beta}, d_activation, options)

    @classmethod
    def encode(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        found = posterior(params, frame.enter(params, buffers, batch))
        return torch.where(found.spike > 0.5, found.mean, 0)

    @classmethod
    def loss(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Loss:
        rows, atoms = frame.enter(params, buffers, batch), frame.dictionary(params, buffers)
        found = posterior(params, rows)
        encoded = torch.where(found.spike > 0.5, found.mean, 0)
        code = sample(found, buffers) if "draw/spike" in buffers else encoded
        reconstruction = frame.combine(params, code, atoms)
        error = parts.mean_squared_error(reconstruction, rows)
        prior = posterior(params, pseudo_rows(params, rows))
        apart = parts.mean_sum(divergence(found, prior))
        sparse = rows.new_tensor(code.shape[1]) * bernoulli(prior.spike.mean(), buffers["alpha"])
        seen = Pass(rows, atoms, encoded, encoded, reconstruction)
        aux = cls.report(params, buffers, batch, seen, error)
        return Loss(error + buffers["beta"] * (apart + sparse), aux)

    @classmethod
    def products(cls, hyperparameters: dict[str, Any]) -> float:
        """Three heads on rows and pseudo-rows, forwards and backwards, and the decoder."""
        return 3.0 * 2 * 2 + 3 * 2 + 3


def posterior(params: Tensors, rows: Tensor) -> Posterior:
    """The three heads: `[B, d] -> 3 x [B, n]`."""
    heads = (("encoder", "encoder_bias"), ("variance_encoder", "variance_bias"))
    mean, log_variance = (parts.affine(rows, params[w], params[b]) for w, b in heads)
    spike = torch.sigmoid(parts.affine(rows, params["spike_encoder"], params["spike_bias"]))
    return Posterior(mean, log_variance, EDGE + (1 - 2 * EDGE) * spike)


def sample(found: Posterior, buffers: Tensors) -> Tensor:
    """A relaxed sample of the posterior, `[B, n]` (section 3.3)."""
    gate = torch.sigmoid(STEEPNESS * (buffers["draw/spike"] - 1 + found.spike))
    return gate * (found.mean + (found.log_variance / 2).exp() * buffers["draw/slab"])


def pseudo_rows(params: Tensors, rows: Tensor) -> Tensor:
    """x_u: softmax(x C^T + c_b) U, `[B, d] -> [B, d]`."""
    weights = parts.affine(rows, params["choice"], params["choice_bias"]).softmax(-1)
    return weights @ params["pseudo_inputs"]


def divergence(q: Posterior, p: Posterior) -> Tensor:
    """KL of two spike-and-slab distributions, per row and feature `[B, n]` (appendix, eq. 9)."""
    squares = q.log_variance.exp() + (q.mean - p.mean).square()
    slab = (p.log_variance - q.log_variance) / 2 + squares / (2 * p.log_variance.exp()) - 0.5
    return q.spike * slab + bernoulli(q.spike, p.spike)


def bernoulli(q: Tensor, p: Tensor) -> Tensor:
    """KL of two coins: q log(q / p) + (1 - q) log((1 - q) / (1 - p))."""
    return q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
