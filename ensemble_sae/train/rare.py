"""Rare-feature vectors: what a sample of rows hides behind its common features.

Source: Peigné 2023, "Taking features out of superposition with sparse autoencoders more quickly
with informed initialization" (SERI MATS 3.0), the rare-feature mixtures. Which rows the residuals
are taken of is this project's choice: the facts at hand name the residuals only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 250  # of the local outlier factor, as in the post
SAME = 1e-6  # of its row's norm: a shorter residual is rounding


class Candidates(NamedTuple):
    """Rare-feature vectors `[C, d]`, best first, and the rows of the sample they are of `[C]`."""

    vectors: Tensor
    of: Tensor


def mean(rows: Tensor, count: int, generator: torch.Generator) -> Candidates:
    """Rows minus the mean of the sample, in random order.

    Args:
        rows: the sample `[S, d]`, distinct rows; count: rare-feature vectors that are wanted.
    """
    order = torch.randperm(len(rows), generator=generator)
    return _long_enough(rows, rows - rows.mean(0), order)


def centroid(rows: Tensor, count: int, generator: torch.Generator) -> Candidates:
    """Rows minus their centroid in a MiniBatchKMeans with `count` clusters (S if S < count).

    First a random row of each cluster, so that every part of the data gives one; then the others,
    in random order: for clusters of one row, which have no residual.

    Args:
        rows: the sample `[S, d]`, distinct rows; count: rare-feature vectors that are wanted.
    """
    labels, centres = _clusters(rows, min(count, len(rows)), generator)
    order = torch.randperm(len(rows), generator=generator)
    found = _long_enough(rows, rows - centres[labels], order)
    first: dict[int, int] = {}
    for place, label in enumerate(labels[found.of].tolist()):
        first.setdefault(label, place)
    later = torch.ones(len(found.of), dtype=torch.bool)
    later[list(first.values())] = False
    best = torch.cat([(~later).nonzero()[:, 0], later.nonzero()[:, 0]])
    return Candidates(found.vectors[best], found.of[best])


def outlier(rows: Tensor, count: int, generator: torch.Generator) -> Candidates:
    """The rows themselves, the strongest outliers by LocalOutlierFactor first.

    n_neighbors is 250, or S - 1 in a smaller sample. Nothing is drawn.

    Source: Breunig et al. 2000, "LOF: identifying density-based local outliers", section 4.

    Args:
        rows: the sample `[S, d]`, distinct rows; count: rare-feature vectors that are wanted.
    """
    if len(rows) < 2:
        return Candidates(rows[:0], torch.zeros(0, dtype=torch.int64))
    from sklearn.neighbors import LocalOutlierFactor
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        factor = LocalOutlierFactor(n_neighbors=min(NEIGHBOURS, len(rows) - 1)).fit(rows.numpy())
    order = torch.from_numpy(factor.negative_outlier_factor_).argsort(stable=True)
    return Candidates(rows[order], order)


MIXTURES: dict[str, Callable[[Tensor, int, torch.Generator], Candidates]] = {
    "mean": mean,
    "centroid": centroid,
    "outlier": outlier,
}


def _clusters(rows: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each row's cluster `[S]`, and the centroids `[count, d]`."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    seed = int(torch.randint(2**31, (), generator=generator))
    with threadpool_limits(1):  # sums in an order of their own would make other centroids
        found = MiniBatchKMeans(count, random_state=seed, n_init=1).fit(rows.numpy())
    return torch.from_numpy(found.labels_).long(), torch.from_numpy(found.cluster_centers_)


def _long_enough(rows: Tensor, residuals: Tensor, order: Tensor) -> Candidates:
    """The residuals in this order, without those that are nothing but rounding."""
    norms = torch.linalg.vector_norm(residuals, dim=1)
    kept = order[(norms > SAME * torch.linalg.vector_norm(rows, dim=1))[order]]
    return Candidates(residuals[kept], kept)
