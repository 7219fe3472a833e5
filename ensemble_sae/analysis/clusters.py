"""Groups of features: by the direction of their atoms, or by when they fire."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ensemble_sae.analysis.coactivity import Coactivity
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.metrics.matching import usable

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["auto", "average", "kmeans"]
METHODS = ("auto", "average", "kmeans")
MOST = 4096  # features that are joined by their distances: 0.4 GB on the way
STARTS = 3  # of k-means, of which the best is taken
ROUNDING = 1e-12  # similarities that are this close are equal


@dataclass(frozen=True)
class Clusters:
    """A partition of features into C clusters; 0 is the largest, of equal ones that with the
    lowest index first.

    Attributes:
        labels: the cluster of each feature, -1 for one that has no direction, or that never varies:
            int64 `[n]`.
        sizes: features of each cluster, int64 `[C]`.
        exemplars: the medoid of each cluster, its feature with the largest sum of similarities to
            all of them (the lowest index of equal ones): int64 `[C]`.
        similarity: mean similarity of a cluster's features to its exemplar, itself left out; NaN
            for a cluster of one: float64 `[C]`.
        method: what found them: "average" or "kmeans".
    """

    labels: Tensor
    sizes: Tensor
    exemplars: Tensor
    similarity: Tensor
    method: str

    @property
    def table(self) -> pd.DataFrame:
        """One row per cluster: `size`, `exemplar` and `similarity`."""
        import pandas as pd

        columns = {"size": self.sizes, "exemplar": self.exemplars, "similarity": self.similarity}
        frame = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        return frame.rename_axis("cluster")

    def members(self, cluster: int) -> Tensor:
        """The features of one cluster, ascending, int64."""
        return (self.labels == cluster).nonzero()[:, 0]


@torch.no_grad()
def clusters(
    dictionary: Tensor,
    *,
    n: int | None = None,
    threshold: float | None = None,
    method: Method = "auto",
    seed: int = 0,
) -> Clusters:
    """Clusters of atoms by the cosines of their directions.

        clusters(run.sae(0).dictionary, n=20).table

    "average": agglomerative; the two clusters with the largest mean cosine between their atoms
    are joined, again and again (average linkage: Sokal & Michener 1958, as SciPy does it). It
    needs all n^2 cosines, and is for at most 4,096 atoms. "kmeans": the n centres of unit rows with
    the least sum of squared distances (Lloyd 1982, from k-means++ starts, the best of 3), for any
    number of atoms; it needs `n`. "auto": the first up to 4,096 atoms, then the second; `method`
    of the result says which it was. The same input gives the same clusters.

    Args:
        dictionary: `[N, d]`, of any norms; rows that are zero or not finite are in no cluster.
        n: how many clusters; or
        threshold: join as long as the mean cosine between two clusters is at least this.
        seed: of k-means.

    Raises:
        UserError: not one of `n` and `threshold`; an `n` that is not 1 to N; an unknown method;
            "average" or a threshold with more than 4,096 atoms.
    """
    kept = usable(dictionary)
    units = dictionary[kept].cpu().double()
    units /= units.abs().amax(1, keepdim=True)
    units /= torch.linalg.vector_norm(units, dim=1, keepdim=True)
    _check_request(len(kept), n, threshold)
    if method not in METHODS:
        raise UserError("Unknown method.", found=method, allowed=nearest(method, METHODS))
    if method == "auto":
        method = "average" if len(kept) <= MOST else "kmeans"
    if method == "average":
        _check_size(len(kept), 'method="kmeans" with n')
        found = _joined((units @ units.mT).numpy(), n, threshold)
    elif n is None:
        raise UserError(
            "k-means needs the number of clusters.",
            where="clusters(threshold)",
            found=f"{len(kept):,} atoms",
            allowed=f"a threshold for at most {MOST:,} atoms",
            next_step="n, or metrics.geometry.clusters, which joins close pairs (single linkage)",
        )
    else:
        found = _kmeans(units.numpy(), n, seed)

    def sums_within(inside: Tensor) -> Tensor:
        return units[inside] @ units[inside].sum(0)

    return _clusters(found, kept.cpu(), len(dictionary), method, sums_within)


@torch.no_grad()
def coactive_clusters(
    coactivity: Coactivity, *, n: int | None = None, threshold: float | None = None
) -> Clusters:
    """Clusters of features by when and how strongly they fire: average linkage on 1 - r.

    r is Pearson's correlation of two codes over all rows, so that features that exclude each other
    are farther apart than unrelated ones.

    Args:
        coactivity: of one code, `Coactivity(n)`, with its rows added. A feature that never varies,
            a dead one for instance, is in no cluster.
        n: how many clusters; or
        threshold: join as long as the mean correlation between two clusters is at least this.

    Raises:
        UserError: pairs of two codes; not one of `n` and `threshold`; an `n` that is not 1 to the
            number of features that vary; more than 4,096 of them.
    """
    if not coactivity.of_one:
        raise UserError(
            "Clusters are of the features of one code.",
            found="a Coactivity of two",
            next_step="Coactivity(n), and add(codes)",
        )
    kept = coactivity.varies.nonzero()[:, 0].cpu()
    _check_request(len(kept), n, threshold)
    _check_size(len(kept), "fewer features: codes[:, chosen]")
    correlation = coactivity.correlation.cpu()
    within = correlation[kept][:, kept]
    found = _joined(within.numpy(), n, threshold)

    def sums_within(inside: Tensor) -> Tensor:
        return within[inside][:, inside].sum(1)

    return _clusters(found, kept, len(correlation), "average", sums_within)


def _joined(similarity: np.ndarray, n: int | None, threshold: float | None) -> np.ndarray:
    """Average linkage until n clusters are left, or none are as similar as the threshold."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    count = len(similarity)
    if count < 2:
        return np.zeros(count, dtype=np.int64)
    distance = np.clip(1 - similarity, 0, 2)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    # Heights ascend: of average linkage no join is lower than one before it.
    joins = (
        count - n if n is not None else int((tree[:, 2] <= 1 - (threshold or 0) + ROUNDING).sum())
    )
    labels = np.arange(count)
    members = {at: [at] for at in range(count)}
    for step, (one, other) in enumerate(tree[:joins, :2].astype(int)):
        members[count + step] = members.pop(one) + members.pop(other)
    for name, inside in members.items():
        labels[inside] = name
    return labels


def _kmeans(units: np.ndarray, n: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    model = KMeans(n, n_init=STARTS, random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # more would sum in any order
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters, as of equal rows
        return model.fit(units.astype(np.float32)).labels_.astype(np.int64)


def _clusters(
    found: np.ndarray,
    kept: Tensor,
    total: int,
    method: str,
    sums_within: Callable[[Tensor], Tensor],
) -> Clusters:
    """Number clusters by size, and find their medoids.

    Args:
        sums_within: of some of the kept features, the sum of each one's similarities to all.
    """
    _, first, inverse, sizes = np.unique(
        found, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -sizes))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    own = torch.from_numpy(rank[inverse])
    exemplars, similar = [], []
    for cluster, size in enumerate(sizes[order].tolist()):
        inside = (own == cluster).nonzero()[:, 0]
        sums = sums_within(inside)
        best = int((sums >= sums.max() - ROUNDING * size).int().argmax())
        exemplars.append(int(kept[inside[best]]))
        similar.append(float(sums[best] - 1) / (size - 1) if size > 1 else math.nan)
    labels = torch.full((total,), -1)
    labels[kept] = own
    return Clusters(
        labels,
        torch.from_numpy(sizes[order]),
        torch.tensor(exemplars, dtype=torch.int64),
        torch.tensor(similar, dtype=torch.float64),
        method,
    )


def _check_request(count: int, n: int | None, threshold: float | None) -> None:
    if (n is None) == (threshold is None):
        raise UserError(
            "Clusters are told by their number or by a threshold.",
            found="neither" if n is None else "both",
            allowed="n or threshold",
        )
    if n is not None and not 1 <= n <= count:
        raise UserError(
            "There cannot be so many clusters.",
            where="n",
            found=f"{n:,}",
            allowed=f"1 to {count:,}, the features that can be in one",
        )


def _check_size(count: int, instead: str) -> None:
    if count > MOST:
        raise UserError(
            "The distances of so many features take too much memory and time.",
            where="average linkage",
            found=f"{count:,} features: {8 * count**2 / 1e9:.1f} GB",
            allowed=f"{MOST:,}",
            next_step=instead,
        )
