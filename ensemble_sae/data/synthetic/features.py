"""What is true of synthetic rows: the features, how often each is active, which go together."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.truth import Truth
from ensemble_sae.randomness import generator

MARGIN = 1.001  # of the shift, over what makes the covariance singular


def truth_of(recipe: SyntheticRecipe) -> Truth:
    """All that is true of a recipe's rows."""
    return Truth(ground_truth(recipe), frequencies(recipe))


def ground_truth(recipe: SyntheticRecipe) -> Tensor:
    """The true features, unit rows `[n_features, d_activation]` float32."""
    draw = generator(recipe.seed, "ground truth")
    rows = torch.randn(recipe.n_features, recipe.d_activation, generator=draw)
    return torch.nn.functional.normalize(rows, dim=1)


def frequencies(recipe: SyntheticRecipe) -> Tensor:
    """How often each feature is active, `[n_features]`; of correlated rows about so often."""
    falling = recipe.decay ** torch.arange(recipe.n_features, dtype=torch.float64)
    return (falling * recipe.mean_active / falling.sum()).float()


def covariance_factor(recipe: SyntheticRecipe) -> Tensor:
    """L with L L^T = C, `[n_features, n_features]` float32."""
    return _factor(recipe.n_features, recipe.seed)


@lru_cache(maxsize=2)  # every chunk of a store needs it again
def _factor(n: int, seed: int) -> Tensor:
    uniform = torch.rand(n, n, generator=generator(seed, "covariance")).double()
    symmetric = (uniform + uniform.T) / 2
    shift = -MARGIN * torch.linalg.eigvalsh(symmetric)[0].clamp(max=0)
    return torch.linalg.cholesky(symmetric + shift * torch.eye(n, dtype=torch.float64)).float()
