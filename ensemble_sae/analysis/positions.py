"""Which features tell where a token stands in its context, and which tell what it is.

A feature's activation a(t, p) is a function of the token t and the position p: exactly so where a
row is the sum of a token's and a position's embedding, on average elsewhere. Its two margins are
its mean over tokens, m(p), and its mean over positions, m(t):

* position score = max over positions p of m(p), the mean of a(t, p) over tokens t;
* token score = max over tokens t of m(t), the mean of a(t, p) over positions p.

A feature of a single token scores high by token and, since it is silent on all others, low by
position; a feature of a position the other way round. A feature is called *positional* where its
position score is above its token score. The scores are in units of the code.

Source: Chughtai and Lau 2024, "Understanding Positional Features in Layer 0 SAEs". The token score
is read here as the mirror image of the position score; the mean over tokens and positions would be
the mean of m(p), which `PositionScores.by_position` gives too. The rule that compares the two
scores is this project's: both are in the same units, so it needs no threshold of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.run import Sae

Span = tuple[int, int]  # positions from the first on, up to but not including the second
Placed = tuple[Tensor, Tensor, Tensor]  # rows [B, d], their tokens [B] and positions [B]


@dataclass(frozen=True)
class PositionScores:
    """Scores of the n features of one autoencoder.

    Attributes:
        by_position: m(p), `[n, P]` float32; NaN at positions of which there was no row.
        token: the token score, `[n]`; NaN where no token was seen often enough.
        token_id: the token of the token score, `[n]`; -1 where there is none.
        share: variance of m(p) within `span`, as a share of the activation's variance, `[n]`: 1 if
            position alone says how active the feature is, NaN if it does not vary.
        span: the positions that scores are taken over.
    """

    by_position: Tensor
    token: Tensor
    token_id: Tensor
    share: Tensor
    span: Span

    @property
    def position(self) -> Tensor:
        """The position score, `[n]`."""
        return self._within.amax(1)

    @property
    def peak(self) -> Tensor:
        """The position of the position score, `[n]`."""
        return self._within.argmax(1) + self.span[0]

    @property
    def positional(self) -> Tensor:
        """Features whose position score is above their token score, bool `[n]`."""
        return self.position > self.token

    @property
    def by_peak(self) -> Tensor:
        """The positional features in the order of their peaks, int64 `[m]`."""
        chosen = self.positional.nonzero()[:, 0]
        return chosen[self.peak[chosen].argsort(stable=True)]

    @property
    def _within(self) -> Tensor:
        return self.by_position[:, slice(*self.span)].nan_to_num(-math.inf)


@torch.no_grad()
def enumerated(
    sae: Sae, tiles: Iterable[tuple[Tensor, Tensor]], span: Span | None = None
) -> PositionScores:
    """Scores over all rows that there can be; every token and position counts the same.

    Args:
        tiles: tokens `[T]` and their rows at every position `[T, P, d]`: `Embeddings.tiles`. A
            tile's code `[T, P, n]` is all that is held of them.
        span: the positions that scores are taken over, all by default. Leave out position 0 of a
            model whose contexts begin with BOS: other tokens never stand there.

    Raises:
        UserError: there was no tile.
    """
    n = sae.config.n_dict
    sums, squares, seen = torch.zeros((), dtype=torch.float64), torch.zeros(n).double(), 0
    token, token_id = torch.full((n,), -math.inf), torch.full((n,), -1)
    for tokens, rows in tiles:
        code = sae.encode(rows)
        span = span or (0, code.shape[1])
        within = code[:, slice(*span)]
        sums = sums + code.sum(0).double().cpu()
        squares += _squares(within.flatten(0, 1)).cpu()
        top, at = within.mean(1).cpu().max(0)
        token_id = torch.where(top > token, tokens.cpu()[at], token_id)
        token, seen = torch.maximum(token, top.float()), seen + len(tokens)
    if span is None or seen == 0:
        raise _nothing()
    by_position = (sums / seen).T
    share = _share(by_position, torch.full((by_position.shape[1],), seen), squares, span)
    return PositionScores(by_position.float(), token, token_id, share, span)


@torch.no_grad()
def sampled(
    sae: Sae,
    rows: Iterable[Placed],
    tokens: Tensor,
    positions: int,
    span: Span | None = None,
    least: int = 16,
) -> PositionScores:
    """The same scores estimated from the rows of a text, of any model and at any hook.

    m(p) is the mean over the rows at p, so that a token counts as often as it occurs; m(t) is the
    mean over the rows of t within `span`. Positions that a token does not occur at are not known.

    Args:
        rows: `rows_of_text`, for one.
        tokens: ids that m(t) is taken of, `[S]`: `[S, n]` numbers are held.
        positions: of a context, P.
        least: tokens with fewer rows have no m(t): the maximum over tokens would be of chance.

    Raises:
        UserError: there were no rows within the span.
    """
    n, span = sae.config.n_dict, span or (0, positions)
    sums, counts = torch.zeros(positions, n).double(), torch.zeros(positions)
    of_tokens, times = torch.zeros(len(tokens), n).double(), torch.zeros(len(tokens))
    squares = torch.zeros(n).double()
    place = torch.full((int(tokens.max()) + 1 if len(tokens) else 0,), -1)
    place[tokens] = torch.arange(len(tokens))
    for values, ids, at in rows:
        code = sae.encode(values).cpu().double()
        sums.index_add_(0, at, code)
        counts += torch.bincount(at, minlength=positions)
        within = (at >= span[0]) & (at < span[1])
        squares += _squares(code[within])
        known = within & (ids < len(place))
        known[known.clone()] = place[ids[known]] >= 0
        of_tokens.index_add_(0, place[ids[known]], code[known])
        times += torch.bincount(place[ids[known]], minlength=len(tokens))
    if counts[slice(*span)].sum() == 0:
        raise _nothing()
    by_position = (sums / counts[:, None]).T  # 0 / 0 where there was no row
    share = _share(by_position, counts, squares, span)
    often = times >= least
    token, token_id = torch.full((n,), torch.nan), torch.full((n,), -1)
    if often.any():
        best, at = (of_tokens[often] / times[often, None]).max(0)
        token, token_id = best.float(), tokens[often][at]
    return PositionScores(by_position.float(), token, token_id, share, span)


def _squares(code: Tensor) -> Tensor:
    """Sum of squares of each column of a tile or batch, float64 `[n]`."""
    return torch.linalg.vector_norm(code, dim=0).double().square()


def _share(by_position: Tensor, counts: Tensor, squares: Tensor, span: Span) -> Tensor:
    """Variance between positions as a share of all, both around the mean over rows in the span."""
    weight = counts[slice(*span)].to(by_position) / counts[slice(*span)].sum()
    means = by_position[:, slice(*span)].nan_to_num(0.0)
    middle = means @ weight
    between = (means - middle[:, None]).square() @ weight
    total = squares / counts[slice(*span)].sum() - middle.square()
    varies = total > 1e-9 * squares / counts[slice(*span)].sum()  # else: of rounding alone
    return torch.where(varies, between / total, torch.nan).float()


def _nothing() -> UserError:
    return UserError("There are no rows to score positions on.", next_step="give a longer text")
