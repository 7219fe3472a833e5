"""Clusters against a slow joining of clusters, scipy's cuts, and groups that were planted."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from making import rows
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from ensemble_sae.analysis import Clusters, Coactivity, clusters, coactive_clusters
from ensemble_sae.errors import UserError

MODULE = importlib.import_module("ensemble_sae.analysis.clusters")
SIZES = (3, 9, 6, 1)


def partition(labels: Any) -> set[frozenset[int]]:
    found: dict[int, set[int]] = {}
    for at, label in enumerate(np.asarray(labels).tolist()):
        if label != -1:
            found.setdefault(label, set()).add(at)
    return {frozenset(inside) for inside in found.values()}


def slow_average(similarity: np.ndarray, n: int, threshold: float = -9) -> set[frozenset[int]]:
    """Join the two clusters with the largest mean similarity, until n are left."""
    groups = [frozenset([at]) for at in range(len(similarity))]

    def mean(pair: tuple[frozenset[int], frozenset[int]]) -> float:
        return float(np.mean([similarity[i, j] for i in pair[0] for j in pair[1]]))

    while len(groups) > n:
        one, two = max(itertools.combinations(groups, 2), key=mean)
        if mean((one, two)) < threshold:
            break
        groups = [g for g in groups if g not in (one, two)] + [one | two]
    return set(groups)


def cosines_of(atoms: Tensor) -> np.ndarray:
    units = atoms.double().numpy()
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    return units @ units.T


def check_facts(found: Clusters, similarity: np.ndarray) -> None:
    """Sizes, their order, medoids and mean similarities, counted by hand; indices as given."""
    groups = sorted(partition(found.labels), key=lambda g: (-len(g), min(g)))
    assert found.sizes.tolist() == [len(g) for g in groups]
    for cluster, group in enumerate(groups):
        assert found.members(cluster).tolist() == sorted(group)
        sums = {i: sum(similarity[i, j] for j in group) for i in sorted(group)}
        best = next(i for i in sums if sums[i] >= max(sums.values()) - 1e-9)
        assert int(found.exemplars[cluster]) == best
        others = [similarity[best, j] for j in group if j != best]
        expected = np.mean(others) if others else math.nan
        assert float(found.similarity[cluster]) == pytest.approx(expected, nan_ok=True)
    table = found.table
    assert table["size"].tolist() == found.sizes.tolist()
    assert table["exemplar"].tolist() == found.exemplars.tolist()


@pytest.mark.parametrize("n", [1, 2, 5, 14])
def test_average_linkage_is_that_of_slow_joining(n: int) -> None:
    atoms = rows(14, 5, 3) * torch.linspace(0.1, 9, 14)[:, None]
    found = clusters(atoms, n=n)
    assert partition(found.labels) == slow_average(cosines_of(atoms), n)
    assert found.method == "average"
    assert len(found.sizes) == n
    check_facts(found, cosines_of(atoms))


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.8, 1.1])
def test_a_threshold_stops_the_joining(threshold: float) -> None:
    atoms = rows(40, 6, 4)
    found = clusters(atoms, threshold=threshold)
    assert partition(found.labels) == slow_average(cosines_of(atoms), 1, threshold)
    condensed = 1 - cosines_of(atoms)[np.triu_indices(40, 1)]
    tree = linkage(condensed, "average")
    assert partition(found.labels) == partition(fcluster(tree, 1 - threshold, "distance"))
    check_facts(found, cosines_of(atoms))


def planted(noise: float = 0.1) -> tuple[Tensor, set[frozenset[int]]]:
    """Groups around orthogonal directions, shuffled, among rows that are no atoms."""
    label = torch.cat([torch.full((size,), at) for at, size in enumerate(SIZES)])
    label = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(0))]
    atoms = torch.eye(8).double()[label] + noise * rows(len(label), 8, 1)
    atoms *= torch.linspace(1, 100, len(label))[:, None]
    atoms = torch.cat([torch.zeros(1, 8).double(), atoms, torch.full((1, 8), math.nan).double()])
    return atoms, partition([-1, *label.tolist(), -1])


@pytest.mark.parametrize(
    "how",
    [{"n": 4}, {"threshold": 0.5}, {"n": 4, "method": "kmeans"}, {"n": 4, "method": "average"}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planted_groups_are_found(how: dict[str, Any], dtype: torch.dtype) -> None:
    atoms, groups = planted()
    found = clusters(atoms.to(dtype), **how)
    assert partition(found.labels) == groups
    assert found.sizes.tolist() == sorted(SIZES, reverse=True)
    assert found.labels[[0, -1]].tolist() == [-1, -1]
    assert float(found.similarity[0]) > 0.8
    atoms[[0, -1]] = 1  # in no cluster, whatever they are
    check_facts(found, cosines_of(atoms))


def test_many_atoms_are_clustered_by_kmeans(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms, groups = planted()
    monkeypatch.setattr(MODULE, "MOST", 18)
    found = clusters(atoms, n=4)
    assert found.method == "kmeans"
    assert partition(found.labels) == groups
    with pytest.raises(UserError, match="needs the number of clusters") as caught:
        clusters(atoms, threshold=0.5)
    assert caught.value.found == "19 atoms"
    with pytest.raises(UserError, match="too much memory") as caught:
        clusters(atoms, n=4, method="average")
    assert str(caught.value.next_step).startswith('method="kmeans"')


@pytest.mark.parametrize("method", ["average", "kmeans"])
def test_equal_input_gives_equal_clusters(method: Any) -> None:
    atoms = rows(200, 6, 2)
    first, again = (clusters(atoms, n=20, method=method) for _ in range(2))
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.exemplars, again.exemplars)
    check_facts(first, cosines_of(atoms))


def test_kmeans_has_closer_centres_than_chance_and_follows_its_seed() -> None:
    atoms = rows(300, 4, 2)
    found = clusters(atoms, n=12, method="kmeans", seed=1)
    units = torch.nn.functional.normalize(atoms)

    def spread(labels: Tensor) -> float:
        parts = [units[labels == c] for c in range(12)]
        return sum(float((p - p.mean(0)).square().sum()) for p in parts)

    shuffled = found.labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert spread(found.labels) < 0.5 * spread(shuffled)
    assert not torch.equal(found.labels, clusters(atoms, n=12, method="kmeans").labels)


def test_copies_and_opposites() -> None:
    atoms = torch.eye(4)[[0, 0, 1, 1, 2]]
    atoms[3] *= -1
    assert partition(clusters(atoms, threshold=0.5).labels) == {
        frozenset(g) for g in ({0, 1}, {2}, {3}, {4})
    }
    assert clusters(atoms, threshold=0.5).exemplars.tolist() == [0, 2, 3, 4]
    assert partition(clusters(rows(3, 7)[[0, 1, 0, 2]], threshold=1).labels) == {
        frozenset(g) for g in ({0, 2}, {1}, {3})
    }
    kmeans = clusters(atoms[[0, 0, 0, 2]], n=3, method="kmeans")  # of two different rows
    assert partition(kmeans.labels) == {frozenset({0, 1, 2}), frozenset({3})}


def test_requests_that_make_no_sense() -> None:
    atoms = rows(6, 4)
    for wrong in ({}, {"n": 2, "threshold": 0.5}):
        with pytest.raises(UserError, match="by their number or by a threshold"):
            clusters(atoms, **wrong)
    for n in (0, 7):
        with pytest.raises(UserError, match="so many clusters") as caught:
            clusters(atoms, n=n)
        assert str(caught.value.allowed).startswith("1 to 6")
    with pytest.raises(UserError, match="did you mean 'kmeans'"):
        clusters(atoms, n=2, method="kmean")  # type: ignore[arg-type]
    none = clusters(torch.zeros(3, 4), threshold=0.5)
    assert none.labels.tolist() == [-1] * 3
    assert none.sizes.tolist() == []


# --- by co-activity


def code_of_groups() -> tuple[Tensor, set[frozenset[int]]]:
    """Features of a group fire on the same rows, mostly; 3 never does, 8 always the same."""
    label = [0, 1, 2, -1, 0, 1, 0, 1, -1, 2, 0]
    fires = rows(400, 3, 0) > 0.7
    code = torch.zeros(400, len(label)).double()
    for at, group in enumerate(label):
        if group != -1:
            kept = fires[:, group] & (rows(400, 1, 10 + at)[:, 0] > -1.2)
            code[:, at] = torch.where(kept, 1 + 0.1 * rows(400, 1, 50 + at)[:, 0], 0.0)
    code[:, 8] = 0.3
    return code, partition(label)


@pytest.mark.parametrize("how", [{"n": 3}, {"threshold": 0.3}, {"n": 5}], ids=str)
def test_features_that_fire_together_are_in_one_cluster(how: dict[str, Any]) -> None:
    code, groups = code_of_groups()
    seen = Coactivity(11)
    for part in code.split(90):
        seen.add(part)
    found = coactive_clusters(seen, **how)
    assert found.labels[[3, 8]].tolist() == [-1, -1]
    kept = [at for at in range(11) if at not in (3, 8)]
    table = np.full((11, 11), np.nan)
    table[np.ix_(kept, kept)] = np.corrcoef(code.numpy()[:, kept].T)
    slow = slow_average(table[np.ix_(kept, kept)], how.get("n", 1), how.get("threshold", -9))
    assert partition(found.labels) == {frozenset(kept[i] for i in group) for group in slow}
    if how != {"n": 5}:
        assert partition(found.labels) == groups
    check_facts(found, table)


def test_clusters_of_two_codes_and_of_too_many_features(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = code_of_groups()
    two = Coactivity(11, 11)
    two.add(code, code)
    with pytest.raises(UserError, match="one code"):
        coactive_clusters(two, n=2)
    one = Coactivity(11)
    one.add(code)
    with pytest.raises(UserError, match="so many clusters") as caught:
        coactive_clusters(one, n=10)
    assert str(caught.value.allowed).startswith("1 to 9")
    monkeypatch.setattr(MODULE, "MOST", 8)
    with pytest.raises(UserError, match="too much memory") as caught:
        coactive_clusters(one, n=2)
    assert str(caught.value.found).startswith("9 features")
