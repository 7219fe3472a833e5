"""Centres of clusters as atoms: a row is told by the one centre that is closest to it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ensemble_sae.baselines.components import as_array, enough, fitted, like, sample
from ensemble_sae.baselines.fixed import Assignment, as_sae
from ensemble_sae.errors import UserError
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.parts import unit_rows
from ensemble_sae.sweep.member import Value

Metric = Literal["euclidean", "cosine"]
MOST_ROWS = 20_000  # of k-medoids: 1.6 GB of distances


def kmeans(
    rows: Tensor,
    n_dict: int,
    seed: int,
    *,
    metric: Metric = "euclidean",
    centring: bool = False,
    batch_size: int = 4096,
    max_iter: int = 100,
    n_init: int = 3,
) -> Sae:
    """n_dict means, in mini-batches, from a k-means++ start.

    Source: Sculley 2010, "Web-Scale K-Means Clustering", section 2; start: Arthur & Vassilvitskii
    2007, "k-means++: The Advantages of Careful Seeding", section 2.2.

    Args:
        metric: cosine: rows are scaled to unit length before they are clustered, and a row
            belongs to the centre at the smallest angle.
        centring: the mean row is taken off first, and atoms are directions from it.
        max_iter: passes over the rows, at most. n_init: starts, of which the best is taken.

    Raises:
        UserError: fewer rows than centres; an unknown metric.
    """
    from sklearn.cluster import MiniBatchKMeans

    enough(rows, n_dict)
    seen, buffers = _prepared(rows, metric, centring)
    model = MiniBatchKMeans(
        n_dict, batch_size=batch_size, max_iter=max_iter, n_init=n_init, random_state=seed
    )
    converged = fitted(model, as_array(seen))
    options: dict[str, Value] = {"metric": metric, "centring": centring, "n_init": n_init}
    options |= {"batch_size": batch_size, "max_iter": max_iter, "converged": converged}
    params = {"decoder": like(model.cluster_centers_, rows)}
    return as_sae("kmeans", Assignment, params, buffers, seed=seed, options=options)


def kmedoids(
    rows: Tensor,
    n_dict: int,
    seed: int,
    *,
    metric: Metric = "euclidean",
    centring: bool = False,
    max_rows: int = MOST_ROWS,
    max_iter: int = 100,
) -> Sae:
    """n_dict rows, so that the distances of all rows to the closest of them are least in sum.

    Source: Schubert & Rousseeuw 2021, "Fast and Eager k-Medoids Clustering", the
    algorithm FasterPAM, from a random start.

    Args:
        metric, centring: as of `kmeans`; the cosine distance is 1 - cos.
        max_rows: in the sample that medoids are taken from; its distances are all computed.
        max_iter: passes over the sample, at most.

    Raises:
        UserError: the package `kmedoids` is missing; fewer rows than medoids; more than 20,000
            rows in the sample; an unknown metric.
    """
    try:
        import kmedoids as package
    except ImportError:
        raise UserError(
            "k-medoids needs the package 'kmedoids'.",
            next_step="pip install 'ensemble-sae[study]'",
        ) from None
    if max_rows > MOST_ROWS:
        raise UserError(
            "The distances of so many rows take too much memory.",
            where="max_rows",
            found=f"{max_rows:,}",
            allowed=f"at most {MOST_ROWS:,}",
        )
    sampled = sample(rows, max_rows, seed)
    enough(sampled, n_dict)
    seen, buffers = _prepared(sampled, metric, centring)
    distances = 1 - seen @ seen.mT if metric == "cosine" else torch.cdist(seen, seen)
    # One thread: with more, equal seeds may give other medoids.
    result = package.fasterpam(
        as_array(distances), n_dict, max_iter=max_iter, random_state=seed, n_cpu=1
    )
    options: dict[str, Value] = {"metric": metric, "centring": centring}
    options |= {"max_rows": max_rows, "max_iter": max_iter}
    params = {"decoder": seen[torch.from_numpy(result.medoids.astype("int64")).to(seen.device)]}
    return as_sae("kmedoids", Assignment, params, buffers, seed=seed, options=options)


def _prepared(rows: Tensor, metric: Metric, centring: bool) -> tuple[Tensor, Tensors]:
    """Rows as they are clustered, and the buffers by which a row is assigned the same way."""
    buffers: Tensors = {}
    if metric not in ("euclidean", "cosine"):
        raise UserError("Unknown metric.", found=str(metric), allowed="euclidean, cosine")
    if centring:
        buffers["centre"] = rows.mean(0)
        rows = rows - buffers["centre"]
    if metric == "cosine":
        buffers["cosine"] = rows.new_ones(())
        rows = unit_rows(rows)
    return rows, buffers
