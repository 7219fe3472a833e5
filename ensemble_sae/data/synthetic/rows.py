"""The rows of a chunk: pure functions of the recipe and of the chunk's number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.synthetic.features import covariance_factor, frequencies, ground_truth
from ensemble_sae.randomness import generator

BLOCK = 4096  # rows that are drawn at a time: their random numbers stay in the cache

_AMPLITUDES: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "uniform": lambda count, draw: torch.rand(count, generator=draw),
    "constant": lambda count, draw: torch.ones(count),
    "exponential": lambda count, draw: torch.empty(count).exponential_(generator=draw),
    "half_normal": lambda count, draw: torch.randn(count, generator=draw).abs_(),
}


class Active(NamedTuple):
    """The active entries of some rows: row and feature `[m]` in the order of the rows, and how
    strongly each is active.
    """

    rows: int
    row: Tensor
    feature: Tensor
    amplitude: Tensor


def codes(recipe: SyntheticRecipe, hook: str, rows: int, chunk: int) -> Tensor:
    """The true code of a chunk, `[rows, n_features]` float32."""
    made = torch.zeros(rows, recipe.n_features)
    for start, active in _blocks(recipe, hook, rows, chunk):
        made[start + active.row, active.feature] = active.amplitude
    return made


def chunk_of_rows(recipe: SyntheticRecipe, hook: str, rows: int, chunk: int) -> Tensor:
    """The rows of a chunk, `[rows, d_activation]` float32.

    A row is summed over its active features alone, in their order: so it has the same bits however
    many threads there are.
    """
    made, truth = torch.empty(rows, recipe.d_activation), ground_truth(recipe)
    for start, active in _blocks(recipe, hook, rows, chunk):
        made[start : start + active.rows] = _sums(active, truth)
    if recipe.noise:
        draw = generator(recipe.seed, "noise", hook, chunk)
        made += recipe.noise * torch.randn(made.shape, generator=draw)
    return made


def _blocks(
    recipe: SyntheticRecipe, hook: str, rows: int, chunk: int
) -> Iterator[tuple[int, Active]]:
    """The first row of each block, and what is active in it."""
    draw = generator(recipe.seed, "codes", hook, chunk)
    often = frequencies(recipe)
    amplitudes = _AMPLITUDES[recipe.code]
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        chance = often
        if hook == "correlated":
            chance = _together(recipe, often, count, draw)
        drawn = torch.rand(count, recipe.n_features, generator=draw) < chance
        row, feature = drawn.nonzero(as_tuple=True)
        yield start, Active(count, row, feature, amplitudes(len(row), draw))


def _together(recipe: SyntheticRecipe, often: Tensor, rows: int, draw: torch.Generator) -> Tensor:
    """The chance of each feature in each row, `[rows, n_features]`, by what goes together."""
    z = torch.randn(rows, recipe.n_features, generator=draw) @ covariance_factor(recipe).T
    chance = torch.special.ndtr(z).mul_(often)
    return chance.mul_(recipe.mean_active / chance.sum(1, keepdim=True))


def _sums(active: Active, truth: Tensor) -> Tensor:
    """Each row's sum of its features, `[rows, d_activation]`."""
    begins = torch.searchsorted(active.row, torch.arange(active.rows))
    return torch.nn.functional.embedding_bag(
        active.feature, truth, begins, mode="sum", per_sample_weights=active.amplitude
    )
