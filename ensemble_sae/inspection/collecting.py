"""Examples of every feature of a dictionary in one pass over text, in bounded memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ensemble_sae.inspection.examples import Contexts, Examples
from ensemble_sae.randomness import generator

DRAWN = 4  # occurrences kept per example of `spread`, of which evenly spaced ones are shown
# Activations are counted by size, in two bins per octave from 2^-10 to 2^10; what is smaller or
# larger is in the first or the last.
LOWEST, HIGHEST, PER_OCTAVE = -10, 10, 2
BINS = (HIGHEST - LOWEST) * PER_OCTAVE
EDGES = tuple(2.0 ** (LOWEST + place / PER_OCTAVE) for place in range(BINS + 1))
POOL = 2  # random fragments per feature's own, which all features choose from


class Collector:
    """Keeps, of n features, the strongest fragments, some of all that they fire on, and moments.

    What is kept does not grow with the text: n (top + 4 spread) w numbers, 2 random w n, and n
    times 40 counts.

    Args:
        fragments: of the whole text, `[F, w]` tokens.
        n: features. top, spread, random: examples of each kind per feature.
        seed: of what is drawn.
        device: where codes are, and what is kept.
    """

    def __init__(
        self,
        fragments: Tensor,
        n: int,
        *,
        top: int = 20,
        spread: int = 10,
        random: int = 20,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self._tokens, self._counts = fragments, (top, spread, random)
        width = fragments.shape[1]
        self._top = _Kept(n, top, width, device)
        self._drawn = _Kept(n, DRAWN * spread, width, device)
        self._seed, self._generator = seed, generator(seed, "examples")
        pool = torch.randperm(len(fragments), generator=self._generator)[: POOL * random]
        self._pool = pool.sort().values
        self._pooled = torch.zeros(len(self._pool), width, n, device=device)
        self.rows = 0
        zeros = torch.zeros(n, dtype=torch.float64, device=device)
        self._active, self._sum, self._largest = zeros, zeros.clone(), zeros.clone().float()
        self._counts_by_size = torch.zeros(n, BINS, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, first: int, code: Tensor, is_read: Tensor) -> None:
        """Add the fragments from number `first` on.

        Args:
            code: `[F, w, n]`; is_read: `[F, w]`, tokens whose code counts.
        """
        code = code * is_read[..., None]
        self.rows += int(is_read.sum())
        active = code != 0
        self._active += active.sum((0, 1))
        self._sum += code.sum((0, 1), dtype=torch.float64)
        self._largest = torch.maximum(self._largest, code.amax((0, 1)))
        self._count(code)
        strongest, place = code.max(1)
        self._top.add(first, torch.where(strongest > 0, strongest, -math.inf), place, code)
        # Each occurrence has a random number; those with the largest are a fair sample of all.
        draws = torch.rand(code.shape, generator=self._generator).to(code.device)
        largest, place = torch.where(active, draws, -math.inf).max(1)
        self._drawn.add(first, largest, place, code)
        inside = (self._pool >= first) & (self._pool < first + len(code))
        self._pooled[inside.to(code.device)] = code[(self._pool[inside] - first).to(code.device)]

    def _count(self, code: Tensor) -> None:
        """Count positive activations by size."""
        *_, feature = (code > 0).nonzero(as_tuple=True)
        place = ((code[code > 0].log2() - LOWEST) * PER_OCTAVE).floor().clamp(0, BINS - 1).long()
        flat = torch.bincount(feature * BINS + place, minlength=self._counts_by_size.numel())
        self._counts_by_size += flat.view_as(self._counts_by_size)

    @property
    def histogram(self) -> Tensor:
        """Tokens by the size of each feature's positive activation there, int32 `[n, BINS]`."""
        return self._counts_by_size.int().cpu()

    @property
    def density(self) -> Tensor:
        """Share of tokens on which each feature is active, `[n]`."""
        return (self._active / max(1, self.rows)).float().cpu()

    @property
    def strength(self) -> Tensor:
        """Mean code on the tokens where a feature is active, else 0: `[n]`."""
        return (self._sum / self._active.clamp_min(1)).float().cpu()

    @property
    def largest(self) -> Tensor:
        """Largest code seen, at least 0: `[n]`."""
        return self._largest.cpu()

    def examples(self) -> Examples:
        """What was kept, on the CPU."""
        top, spread, random = self._counts
        features, order = torch.arange(len(self._active)), self._even(spread)
        return Examples(
            features,
            self._shown(self._top, torch.arange(top).expand(len(features), -1)),
            self._shown(self._drawn, order),
            self._random(random),
            self._drawn.places.gather(1, order).cpu(),
        )

    def _shown(self, kept: _Kept, order: Tensor) -> Contexts:
        """Some of what is kept: which of each feature's, in which order, `[n, k]`."""
        order = order.to(kept.rows.device)
        fragments = kept.fragments.gather(1, order).cpu()
        rows = kept.rows.gather(1, order[..., None].expand(-1, -1, kept.rows.shape[2])).cpu()
        tokens = self._tokens[fragments.clamp_min(0)] * (fragments >= 0)[..., None]
        return Contexts(tokens.int(), rows, fragments)

    def _even(self, count: int) -> Tensor:
        """Of the drawn activations, evenly spaced ones from the weakest on: places `[n, count]`."""
        kept = self._drawn
        there = kept.fragments >= 0
        drawn = kept.rows.gather(2, kept.places[..., None])[..., 0]
        strength = torch.where(there, drawn, math.inf)  # those that are not there go last
        order = strength.argsort(dim=1, stable=True)
        have = there.sum(1, keepdim=True)
        steps = torch.arange(count, device=have.device)
        spaced = (steps * (have - 1) / max(1, count - 1)).round().long()
        places = torch.where(have > count, spaced, steps.expand_as(spaced))
        return order.gather(1, places.clamp(0, order.shape[1] - 1))

    def _random(self, count: int) -> Contexts:
        """Fragments of the pool, others for every feature."""
        n, size = len(self._active), len(self._pool)
        draws = torch.rand(n, size, generator=generator(self._seed, "random examples"))
        places = draws.argsort(1)[:, :count]
        rows = self._pooled.cpu().permute(2, 0, 1)
        rows = rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))
        fragments = self._pool[places]
        return Contexts(self._tokens[fragments].int(), rows, fragments)


class _Kept:
    """For each of n features the k fragments with the highest rank, the token in each that has it,
    and the feature's code on all of it.
    """

    def __init__(self, n: int, k: int, width: int, device: str | torch.device) -> None:
        self.ranks = torch.full((n, k), -math.inf, device=device)
        self.fragments = torch.full((n, k), -1, device=device)
        self.places = torch.zeros(n, k, dtype=torch.int64, device=device)
        self.rows = torch.zeros(n, k, width, device=device)

    def add(self, first: int, ranks: Tensor, places: Tensor, code: Tensor) -> None:
        """Fragments from number `first` on.

        Args:
            ranks: `[F, n]`, -inf for what is not to be kept; places: whose they are, `[F, n]`.
            code: `[F, w, n]`.
        """
        k = self.ranks.shape[1]
        both = torch.cat([self.ranks, ranks.mT.to(self.ranks)], 1)
        self.ranks, chosen = both.topk(k)
        old = chosen < k
        self.fragments = torch.where(
            old, self.fragments.gather(1, chosen.clamp_max(k - 1)), chosen - k + first
        )
        self.fragments[self.ranks == -math.inf] = -1
        self.places = torch.cat([self.places, places.mT], 1).gather(1, chosen)
        kept = chosen.clamp_max(k - 1)[..., None].expand_as(self.rows)
        self.rows = self.rows.gather(1, kept)
        feature, place = (~old & (self.fragments >= 0)).nonzero(as_tuple=True)
        self.rows[feature, place] = code[self.fragments[feature, place] - first, :, feature]
        self.rows[self.fragments < 0] = 0
