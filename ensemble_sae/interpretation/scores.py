"""How well a simulated feature follows the true one, and means over features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ensemble_sae.interpretation.fragments import Split, present

if TYPE_CHECKING:
    import pandas as pd


class Score(NamedTuple):
    """Correlations of F features, float64 `[F]`; NaN where there is nothing to foretell.

    Attributes:
        top: over the tokens of the scored top fragments.
        random: over those of the scored random fragments.
        top_and_random: over both.
    """

    top: Tensor
    random: Tensor
    top_and_random: Tensor


class Summary(NamedTuple):
    """A mean over features and its 95% confidence interval.

    Attributes:
        mean, low, high: NaN where there are no values (an interval needs two).
        n: values that the mean is over.
        undefined: values that are NaN.
    """

    mean: float
    low: float
    high: float
    n: int
    undefined: int


def correlation(true: Tensor, simulated: Tensor, known: Tensor | None = None) -> Tensor:
    """Pearson's correlation over the last axis, in float64.

    r = sum (a - mean a)(b - mean b) / sqrt(sum (a - mean a)^2 sum (b - mean b)^2)

    Args:
        true, simulated: `[..., n]`.
        known: which of them count, bool `[..., n]`; all, if None.

    Returns:
        `[...]`; NaN where a side is constant, a counted value is NaN, or fewer than two count.
    """
    if known is None:
        known = torch.ones_like(true, dtype=torch.bool)
    constant = _constant(true, known) | _constant(simulated, known)
    a, b = _centred(true, known), _centred(simulated, known)
    r = (a * b).sum(-1) / ((a * a).sum(-1) * (b * b).sum(-1)).sqrt()
    return r.masked_fill(constant, math.nan).clamp(-1, 1)


def score(split: Split, top: Tensor, random: Tensor) -> Score:
    """Score what was simulated on the scored fragments of a split.

    A simulation that is constant where the feature is not foretells nothing: 0. Where the feature
    itself is constant (silent on all of these fragments) or the simulation is NaN, the score is
    NaN. The published code (Bills et al. 2023) gives NaN in both cases and does not treat it.

    Args:
        split: whose `top` and `random` were simulated.
        top, random: what was simulated, `[F, scored, w]`, in any unit.
    """
    simulated = torch.cat([top, random], 1)
    true = torch.cat([split.top.activations, split.random.activations], 1)
    known = torch.cat([present(split.top), present(split.random)], 1)
    n = top.shape[1]
    parts = (slice(0, n), slice(n, None), slice(None))
    return Score(*(_scored(true[:, p], simulated[:, p], known[:, p]) for p in parts))


def mean_and_interval(values: Tensor, undefined: Literal["omit", "zero"] = "omit") -> Summary:
    """The mean and Student's interval: mean -+ t(0.975, n - 1) s / sqrt(n).

    Args:
        values: `[F]`.
        undefined: leave NaN out of the mean (as published: features that are hardly ever active
            are skipped there), or count it as 0.
    """
    from scipy.special import stdtrit

    numbers = values.double().numpy()
    missing = np.isnan(numbers)
    kept = np.where(missing, 0.0, numbers) if undefined == "zero" else numbers[~missing]
    n = len(kept)
    mean = float(kept.mean()) if n else math.nan
    if n < 2:
        return Summary(mean, math.nan, math.nan, n, int(missing.sum()))
    half = float(stdtrit(n - 1, 0.975) * kept.std(ddof=1) / math.sqrt(n))
    return Summary(mean, mean - half, mean + half, n, int(missing.sum()))


def comparison(
    scores: Mapping[str, Score], undefined: Literal["omit", "zero"] = "omit"
) -> pd.DataFrame:
    """Dictionaries side by side: a row for each, columns (which score, part of its `Summary`)."""
    import pandas as pd

    rows = {
        name: {
            (kind, part): number
            for kind, values in own._asdict().items()
            for part, number in mean_and_interval(values, undefined)._asdict().items()
        }
        for name, own in scores.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _scored(true: Tensor, simulated: Tensor, known: Tensor) -> Tensor:
    true, simulated, known = (values.flatten(1) for values in (true, simulated, known))
    r = correlation(true, simulated, known)
    return r.masked_fill(_constant(simulated, known) & ~_constant(true, known), 0.0)


def _constant(values: Tensor, known: Tensor) -> Tensor:
    """Whether the known values are all the same, or none; False where one is NaN: bool `[...]`."""
    most = values.masked_fill(~known, -math.inf).amax(-1)
    least = values.masked_fill(~known, math.inf).amin(-1)
    return most <= least


def _centred(values: Tensor, known: Tensor) -> Tensor:
    """Known values less their mean, the others 0; of length near 1, so that squares fit."""
    kept = values.double().masked_fill(~known, 0.0)
    count = known.sum(-1, keepdim=True).clamp(min=1)
    centred = (kept - kept.sum(-1, keepdim=True) / count).masked_fill(~known, 0.0)
    largest = centred.abs().amax(-1, keepdim=True)
    return centred / torch.where(largest > 0, largest, torch.ones_like(largest))
