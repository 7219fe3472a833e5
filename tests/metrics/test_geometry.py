"""Capacity, spread and clusters against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from making import rows
from torch import Tensor

from ensemble_sae.metrics import geometry, matching
from ensemble_sae.metrics.geometry import capacity, clusters, inverse_simpson

N, D = 23, 5


def spoilt(dtype: torch.dtype = torch.float64) -> Tensor:
    """Atoms of several norms among rows that are none."""
    atoms = rows(N, D) * 2 ** rows(N, 1, 1)
    atoms[2], atoms[-1] = 0, 0
    atoms[4, 1], atoms[5, 0] = math.nan, math.inf
    return atoms.to(dtype)


def is_atom(row: np.ndarray) -> bool:
    return bool(np.isfinite(row).all() and row.any())


def slow_capacity(dictionary: np.ndarray) -> list[float]:
    found = []
    for w in dictionary:
        if is_atom(w):
            found.append((w @ w) ** 2 / sum((w @ v) ** 2 for v in dictionary if is_atom(v)))
        else:
            found.append(0.0 if (w == 0).all() else math.nan)
    return found


def slow_inverse_simpson(dictionary: np.ndarray) -> list[float]:
    return [
        1 / sum((x * x / (w @ w)) ** 2 for x in w) if is_atom(w) else math.nan for w in dictionary
    ]


def slow_clusters(atoms: np.ndarray, threshold: float, absolute: bool) -> list[int]:
    """By walking from each atom to all that can be reached."""
    left = [i for i, atom in enumerate(atoms) if is_atom(atom)]

    def close(i: int, j: int) -> bool:
        a, b = atoms[i], atoms[j]
        cosine = a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)
        return (abs(cosine) if absolute else cosine) >= threshold

    found = []
    while left:
        reached = [left.pop(0)]
        for i in reached:
            near = [j for j in left if close(i, j)]
            left = [j for j in left if j not in near]
            reached += near
        found.append(sorted(reached))
    labels = [-1] * len(atoms)
    for label, cluster in enumerate(sorted(found, key=lambda c: (-len(c), c[0]))):
        for i in cluster:
            labels[i] = label
    return labels


@pytest.fixture(params=[(4096, 1024), (7, 3), (1, 1)], autouse=True)
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BLOCK", request.param[0])
    monkeypatch.setattr(matching, "ROWS", request.param[1])
    monkeypatch.setattr(matching, "COLUMNS", request.param[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_capacity_is_that_of_a_loop(dtype: torch.dtype) -> None:
    atoms = spoilt(dtype)
    found = capacity(atoms)
    assert found.dtype == torch.float64
    expected = slow_capacity(atoms.double().numpy())
    assert found.tolist() == pytest.approx(expected, rel=1e-10, nan_ok=True)
    there = found[~found.isnan()]
    assert there.min() >= 0
    assert there.max() <= 1
    assert there.sum() <= D * (1 + 1e-12)


def test_capacity_of_what_is_known() -> None:
    basis = torch.linalg.qr(rows(D, D))[0] * torch.arange(1, D + 1)[:, None]
    assert capacity(basis).tolist() == pytest.approx([1] * D)
    copies = torch.cat([basis, basis[:1], torch.zeros(1, D)])
    assert capacity(copies).tolist() == pytest.approx([0.5, 1, 1, 1, 1, 0.5, 0])
    assert float(capacity(rows(N, D)).sum()) <= D
    assert capacity(torch.zeros(0, D)).tolist() == []
    assert capacity(torch.ones(1, D)).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_simpson_is_that_of_a_loop(dtype: torch.dtype) -> None:
    atoms = spoilt(dtype)
    expected = slow_inverse_simpson(atoms.double().numpy())
    assert inverse_simpson(atoms).tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_inverse_simpson_of_what_is_known() -> None:
    atoms = torch.tensor([[0.0, -3, 0, 0], [1, 1, 0, -1], [2, -2, 2, 2]]).double()
    for scale in (1, 1e-100, 1e100):
        assert inverse_simpson(atoms * scale).tolist() == pytest.approx([1, 3, 4], rel=1e-15)
    random = inverse_simpson(rows(200, 300))
    assert float(random.mean()) == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("threshold", [-0.5, 0.5, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("edges", [2**22, 2])
def test_clusters_are_those_of_a_walk(
    threshold: float, absolute: bool, edges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "EDGES", edges)
    atoms = spoilt()
    found = clusters(atoms, threshold=threshold, absolute=absolute)
    assert found.dtype == torch.int64
    assert found.tolist() == slow_clusters(atoms.numpy(), threshold, absolute)


def test_clusters_of_what_is_known() -> None:
    axes = torch.eye(4)
    atoms = axes[[0, 3, 1, 1, 2, 2, 2]] * torch.tensor([1, 1, 1, 2, 1, -1, 3])[:, None]
    assert clusters(atoms).tolist() == [2, 3, 0, 0, 1, 4, 1]
    assert clusters(atoms, absolute=True).tolist() == [2, 3, 1, 1, 0, 0, 0]
    assert clusters(torch.zeros(2, 4)).tolist() == [-1, -1]
    assert clusters(torch.zeros(0, 4)).tolist() == []
    assert clusters(atoms[:1]).tolist() == [0]


def test_a_chain_is_one_cluster() -> None:
    angles = torch.arange(0, math.pi, 0.4)  # neighbours have a cosine of 0.92
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert clusters(circle).tolist() == [0] * len(circle)
    assert clusters(circle[::2]).tolist() == list(range(len(circle[::2])))
