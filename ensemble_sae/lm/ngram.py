"""Unigram and bigram baselines: what counting alone gets out of the corpus."""

from __future__ import annotations

import torch
from torch import Tensor


class Bigram:
    """Counts of tokens and of neighbouring pairs, smoothed.

    Unigram, add-one: `p(w) = (n_w + 1) / (N + V)`. Bigram, interpolated with it:
    `p(w | v) = (n_vw + m p(w)) / (n_v + m)`, that is the pair's frequency with weight
    `n_v / (n_v + m)`: often seen contexts are trusted more (Dirichlet smoothing).
    """

    def __init__(self, stream: Tensor, vocabulary: int) -> None:
        """Count the stream of tokens, int64 `[T]`."""
        self.vocabulary = vocabulary
        pairs = stream[:-1] * vocabulary + stream[1:]
        self.pairs = torch.bincount(pairs, minlength=vocabulary**2).view(vocabulary, vocabulary)
        self.contexts = self.pairs.sum(1).double()
        counts = torch.bincount(stream, minlength=vocabulary).double()
        self.unigram = (counts + 1) / (counts.sum() + vocabulary)

    def unigram_nats(self, targets: Tensor) -> float:
        """Mean cross-entropy of the targets `[...]` under the unigram, nats per token."""
        return -self.unigram[targets].log().mean().item()

    def nats(self, inputs: Tensor, targets: Tensor, weight: float) -> float:
        """Mean cross-entropy of the targets given the tokens before them, nats per token.

        Args:
            inputs: `[...]`, the token before each target.
            targets: `[...]`, the tokens that are predicted.
            weight: `m` above, in counts.
        """
        pair = self.pairs[inputs, targets].double() + weight * self.unigram[targets]
        return -(pair / (self.contexts[inputs] + weight)).log().mean().item()


def tune_weight(stream: Tensor, vocabulary: int) -> float:
    """Choose the bigram's `m` on training tokens only: count nine tenths, score the last tenth."""
    cut = len(stream) * 9 // 10
    counted, scored = Bigram(stream[:cut], vocabulary), stream[cut:]
    weights = [2.0**i for i in range(-2, 12)]
    return min(weights, key=lambda m: counted.nats(scored[:-1], scored[1:], m))
