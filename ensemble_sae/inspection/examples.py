"""Fragments of text on which features were seen."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Contexts(NamedTuple):
    """k fragments of w tokens for each of F features.

    Attributes:
        tokens: `[F, k, w]` int32.
        activations: of the feature on each token, `[F, k, w]` float32, in the units of the code.
        fragments: which fragment of the text it is, `[F, k]` int64; -1 where a feature has fewer
            than k, whose tokens and activations are 0.
    """

    tokens: Tensor
    activations: Tensor
    fragments: Tensor

    def of(self, features: Tensor) -> Contexts:
        """Those of some of the features, by their place: int64 `[G]`."""
        return Contexts(*(values[features] for values in self))


class Examples(NamedTuple):
    """What is shown of F features.

    Attributes:
        features: which features of the dictionary these are, ascending int64 `[F]`.
        top: the fragments with the largest activations, in falling order of their largest.
        spread: fragments of activations drawn from all of a feature's, evenly from the weakest to
            the strongest: what it fires on most of the time, which the top ones do not show.
        random: fragments drawn from all of the text, whether or not a feature fires on them.
        drawn: the token of each fragment of `spread` whose activation was drawn, int64 `[F, k]`.
    """

    features: Tensor
    top: Contexts
    spread: Contexts
    random: Contexts
    drawn: Tensor | None = None

    def of(self, places: Tensor) -> Examples:
        """Those of some of the features, by their place in `features`: int64 `[G]`."""
        return Examples(
            self.features[places],
            self.top.of(places),
            self.spread.of(places),
            self.random.of(places),
            None if self.drawn is None else self.drawn[places],
        )
