"""Lookup tables, one per feature: a symbol (a token, a token before, a position) gives a value.

All features are fitted at once. A feature's table is a stretch of one sorted array of keys,
`feature * span + symbol`; sums go through `bincount` and lookups through `searchsorted`, so the
cost is that of sorting the tokens seen, whatever the size of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Table(NamedTuple):
    """What is foretold of F features.

    Attributes:
        keys: feature * span + symbol, ascending int64 `[n]`.
        values: what is foretold where the symbol is met, `[n]`.
        gains: by how much each entry lowers the squared error where it was fitted, `[n]`.
        elsewhere: what is foretold of each feature at any other symbol, `[F]`.
        span: symbols are below this.
    """

    keys: Ints
    values: Floats
    gains: Floats
    elsewhere: Floats
    span: int

    def look_up(self, symbols: Ints) -> Floats:
        """Values of symbols `[F, ...]`, of the same shape."""
        features = np.arange(len(symbols)).reshape(-1, *[1] * (symbols.ndim - 1))
        wanted = features * self.span + symbols
        default = np.broadcast_to(self.elsewhere.reshape(features.shape), symbols.shape)
        if not len(self.keys):
            return default.copy()
        places = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, self.values[places], default)

    def entries(self, feature: int) -> tuple[Ints, Floats, Floats]:
        """Symbols, values and gains of one feature, in falling order of gain."""
        low, high = np.searchsorted(self.keys, [feature * self.span, (feature + 1) * self.span])
        order = low + np.argsort(-self.gains[low:high], kind="stable")
        return self.keys[order] - feature * self.span, self.values[order], self.gains[order]

    def profile(self, feature: int) -> Floats:
        """Values of one feature in ascending order of symbols."""
        low, high = np.searchsorted(self.keys, [feature * self.span, (feature + 1) * self.span])
        return self.values[low:high]


class Groups(NamedTuple):
    """Which of the tokens of F features bear the same symbol, whatever is fitted on them.

    Attributes:
        keys: those met, ascending int64 `[u]`.
        inverse: where in `keys` each token's is, `[F * m * w]`.
        owner: the feature of each key, `[u]`.
        span: symbols are below this.
        shape: (F, m, w).
    """

    keys: Ints
    inverse: Ints
    owner: Ints
    span: int
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, symbols: Ints, span: int) -> Groups:
        """Sort the symbols, `[F, m, w]`, of every feature."""
        features = np.arange(len(symbols))[:, None, None]
        keys, inverse = np.unique((features * span + symbols).ravel(), return_inverse=True)
        first, second, third = symbols.shape
        return cls(keys, inverse.ravel(), keys // span, span, (first, second, third))


def fit(groups: Groups, activations: Floats, known: Bools, size: int, shrink: float) -> Table:
    """For every feature the `size` symbols that tell most, and the mean elsewhere.

    With mean m_s over the n_s tokens of symbol s, and mean m over all n tokens, telling s from the
    rest lowers the squared error by n_s (m_s - m)^2 n / (n - n_s): the `size` largest are kept. The
    value of a kept symbol is (n_s m_s + shrink * e) / (n_s + shrink), where e is the mean over the
    tokens whose symbol is not kept: a symbol seen once is believed less than one seen often.

    Args:
        groups: of the tokens, `[F, m, w]`.
        activations: on them.
        known: which of them to fit on.
        size: how many symbols a feature may have.
        shrink: how many tokens' worth of doubt.
    """
    n_features = groups.shape[0]
    weights = known.ravel().astype(np.float64)
    n_keys = len(groups.keys)
    count = np.bincount(groups.inverse, weights, n_keys)
    total = np.bincount(groups.inverse, weights * activations.ravel(), n_keys)
    all_count = np.bincount(groups.owner, count, n_features)
    all_total = np.bincount(groups.owner, total, n_features)
    mean = all_total / np.maximum(all_count, 1)
    owner = groups.owner
    apart = total / np.maximum(count, 1) - mean[owner]
    rest = all_count[owner] - count
    gains = count * apart**2 * all_count[owner] / np.maximum(rest, 1)
    # Rounding makes gains of 1e-17 where a feature is constant: those are none.
    kept = _largest(np.where(gains > 1e-12 * (mean**2)[owner], gains, 0.0), owner, size)
    left_count = all_count - np.bincount(owner[kept], count[kept], n_features)
    left_total = all_total - np.bincount(owner[kept], total[kept], n_features)
    elsewhere = np.where(left_count > 0, left_total / np.maximum(left_count, 1), 0.0)
    values = (total[kept] + shrink * elsewhere[owner[kept]]) / (count[kept] + shrink)
    return Table(groups.keys[kept], values, gains[kept], elsewhere, groups.span)


def profiles(activations: Floats, known: Bools) -> Table:
    """Means by position, each averaged with its neighbours, (1 2 1) / 4.

    The first position is left as it is, and is nobody's neighbour: nothing comes before it, and
    models treat it in their own way.

    Args:
        activations: `[F, m, w]`.
        known: which of them to fit on.
    """
    n_features, _, width = activations.shape
    mean = (activations * known).sum(1) / np.maximum(known.sum(1), 1)
    if width > 2:
        padded = np.concatenate([mean[:, 1:2], mean[:, 1:], mean[:, -1:]], 1)
        mean[:, 1:] = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    keys = np.arange(n_features * width, dtype=np.int64)
    return Table(keys, mean.ravel(), np.zeros(len(keys)), np.zeros(n_features), width)


def _largest(gains: Floats, owner: Ints, size: int) -> Ints:
    """Places of every feature's `size` largest positive gains, ascending."""
    places = np.flatnonzero(gains > 0)
    order = places[np.lexsort((-gains[places], owner[places]))]
    whose = owner[order]
    rank = np.arange(len(order)) - np.searchsorted(whose, whose)
    return np.sort(order[rank < size])
