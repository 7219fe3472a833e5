"""Losses of a language model's logits, per token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clean(NamedTuple):
    """What others are compared with: p = softmax(logits) and sum p log p, per token."""

    probabilities: Tensor  # [B, T, V]
    negative_entropy: Tensor  # [B, T]

    @classmethod
    def of(cls, logits: Tensor) -> Clean:
        """Of the model as it is, logits `[B, T, V]`."""
        log = torch.log_softmax(logits.float(), -1)
        p = log.exp()
        return cls(p, (p * log).sum(-1))


def losses(logits: Tensor, tokens: Tensor, clean: Clean) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence of each prediction, in nats: `[C, T]` both.

    ce_t = -log q_t(x_{t+1}), the last of a context 0, since nothing is known to follow;
    kl_t = sum_v p_t(v) log(p_t(v) / q_t(v)), p that of the model as it is.

    Args:
        logits: of q, `[C, T, V]`; tokens: `[C, T]`; clean: of the same contexts.
    """
    logits = logits.float()
    normaliser = logits.logsumexp(-1)
    chosen = logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    ce = torch.zeros_like(normaliser)
    ce[:, :-1] = normaliser[:, :-1] - chosen
    kl = clean.negative_entropy - (clean.probabilities * logits).sum(-1) + normaliser
    return ce, kl
