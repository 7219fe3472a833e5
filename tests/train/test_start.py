"""First directions against slow, obvious versions of what they are said to be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ensemble_sae.config import start as words
from ensemble_sae.errors import UserError
from ensemble_sae.train import rare
from ensemble_sae.train.start import JITTER, SHAPES, directions

D, S = 12, 60
MADE = words.KINDS[1:]
OF_ROWS = [kind for kind in MADE if words.Start(kind).needs_rows]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: str, rows: Tensor, n: int, seed: int = 0, **options: Any) -> Tensor:
    return directions(kind, rows, n, generator=generator(seed), **options)


def normal(count: int = S, d: int = D, seed: int = 7) -> Tensor:
    return torch.randn(count, d, generator=generator(seed), dtype=torch.float64) + 0.5


def unit(rows: Tensor) -> Tensor:
    return torch.stack([row / row.norm() for row in rows.double()])


def matches(found: Tensor, among: Tensor) -> list[int | None]:
    """For each unit row found, which of these directions it is."""
    cosines = found.double() @ unit(among).T
    best = cosines.max(1)
    return [int(i) if c > 1 - 1e-6 else None for c, i in zip(*best, strict=True)]


# --- of all kinds


def test_every_kind_has_a_maker() -> None:
    assert tuple(SHAPES) == words.RANDOM
    assert tuple(rare.MIXTURES) == words.RARE


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("n", [1, D - 5, D, 3 * D + 1, 3 * S + 1])
def test_shape_norm_and_repetition(kind: str, n: int) -> None:
    rows = normal().half()
    found = make(kind, rows, n, rare=0.3)
    assert (found.shape, found.dtype) == ((n, D), torch.float32)
    assert found.isfinite().all()
    if kind not in ("xavier", "kaiming"):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(n))
    torch.manual_seed(5)  # of no meaning, as is NumPy's
    np.random.seed(5)
    assert torch.equal(make(kind, rows, n, rare=0.3), found)
    if n > 1 and not (kind == "svd" and n <= 2 * D):
        assert not torch.equal(make(kind, rows, n, seed=1, rare=0.3), found)
    # No two are the same, which would stay the same.
    cosines = found.double() @ found.double().T
    assert (cosines.fill_diagonal_(-1).amax() < 1 - 1e-6) or kind in ("xavier", "kaiming")


@pytest.mark.parametrize("kind", OF_ROWS)
def test_zero_rows_broken_rows_and_copies_are_left_out(kind: str) -> None:
    rows = normal(8)
    bad = torch.zeros(3, D, dtype=torch.float64)
    bad[1, 4], bad[2, 0] = math.nan, math.inf
    order = torch.randperm(19, generator=generator())
    among = torch.cat([rows, bad, rows])[order]
    assert torch.equal(make(kind, among, 8, rare=0.5), make(kind, rows, 8, rare=0.5))


@pytest.mark.parametrize("kind", OF_ROWS)
def test_a_sample_without_a_direction_is_refused(kind: str) -> None:
    for rows in (torch.zeros(5, D), torch.full((2, D), math.nan), torch.zeros(0, D)):
        with pytest.raises(UserError, match="No row of the sample"):
            make(kind, rows, 4)


@pytest.mark.parametrize("kind", words.RARE)
def test_rows_that_are_all_the_same_have_nothing_rare(kind: str) -> None:
    with pytest.raises(UserError, match="all the same"):
        make(kind, torch.ones(5, D), 4, rare=0.5)
    assert make("rows", torch.ones(5, D), 4).shape == (4, D)


@pytest.mark.parametrize("kind", ["signature", "ortogonal"])
def test_what_is_not_made_here(kind: str) -> None:
    with pytest.raises(UserError, match="No directions") as caught:
        make(kind, normal(), 4)
    assert "orthogonal" in str(caught.value.allowed)


# --- random ones


@pytest.mark.parametrize("n", [5, D, 2 * D + 3])
def test_orthogonal_blocks(n: int) -> None:
    found = make("orthogonal", torch.zeros(0, D), n).double()
    for first in range(0, n, D):
        block = found[first : first + D]
        torch.testing.assert_close(
            block @ block.T, torch.eye(len(block)).double(), atol=1e-6, rtol=0
        )


def test_orthogonal_is_uniform() -> None:
    first = torch.stack([make("orthogonal", torch.zeros(0, 3), 2, seed=s) for s in range(2000)])
    assert first.mean(0).abs().max() < 5 * (1 / 3 / 2000) ** 0.5
    assert (first.square().mean(0) - 1 / 3).abs().max() < 0.04


@pytest.mark.parametrize(("kind", "bound"), [("xavier", (6 / 300) ** 0.5), ("kaiming", 0.06**0.5)])
def test_uniform_bounds(kind: str, bound: float) -> None:
    found = make(kind, torch.zeros(0, 100), 200)
    assert 0.999 * bound < found.abs().max() <= bound
    assert float(found.mean()) == pytest.approx(0, abs=0.02 * bound)
    assert float(found.var()) == pytest.approx(bound**2 / 3, rel=0.02)


# --- rows


@pytest.mark.parametrize("n", [20, S])
def test_rows_are_drawn_without_replacement(n: int) -> None:
    found = matches(make("rows", normal(), n), normal())
    assert None not in found
    assert len(set(found)) == n


def test_rows_again_come_with_noise() -> None:
    found = make("rows", normal(), 2 * S + 5)
    first = matches(found[:S], normal())
    assert sorted(first) == list(range(S))
    again = found[S:].double() @ unit(normal()).T
    assert again.argmax(1).tolist() == (first * 2)[: S + 5]
    closeness = 1 / math.hypot(1, JITTER)
    assert float(again.amax(1).mean()) == pytest.approx(closeness, abs=3e-3)


# --- singular vectors


def test_singular_vectors_both_signs_and_mixtures() -> None:
    rows = normal() @ torch.diag(torch.linspace(3, 0.5, D).double())
    found = make("svd", rows, 2 * D + 4000).double()
    values, vectors = np.linalg.eigh(rows.numpy().T @ rows.numpy())
    expected = torch.from_numpy(vectors.T[::-1].copy())
    torch.testing.assert_close((found[:D] * expected).sum(1).abs(), torch.ones(D).double())
    assert (found[:D] @ rows.mean(0) >= -1e-6).all()
    assert torch.equal(found[D : 2 * D], -found[:D])
    # Unit rows drawn from N(0, X^T X): seen along the singular vectors.
    seen = (found[2 * D :] @ expected.T).square().mean(0)
    draw = np.random.default_rng(0).normal(size=(20_000, D)) * np.sqrt(values[::-1])
    wanted = (draw / np.linalg.norm(draw, axis=1, keepdims=True)) ** 2
    torch.testing.assert_close(seen, torch.from_numpy(wanted.mean(0)), atol=0.02, rtol=0.1)


def test_singular_vectors_of_few_rows() -> None:
    rows = normal(4)
    found = make("svd", torch.cat([rows, rows[:1] + rows[1:2]]), 20).double()  # of rank 4
    span = torch.linalg.qr(rows.T)[0]
    torch.testing.assert_close((found @ span).norm(dim=1), torch.ones(20).double())
    torch.testing.assert_close(found[4:8], -found[:4])


# --- rare features


@pytest.mark.parametrize("kind", words.RARE)
@pytest.mark.parametrize("share", [0.001, 0.05, 0.25, 1.0])
def test_the_share_of_rare_vectors(kind: str, share: float) -> None:
    n, count = 40, round(share * 40)
    found = make(kind, normal(), n, rare=share)
    common = matches(found[: n - count], normal())
    assert None not in common
    assert len(set(common)) == n - count
    if kind != "outlier":
        assert matches(found[n - count :], normal()) == [None] * count


def test_rows_minus_the_mean() -> None:
    rows, n = normal(), 40
    found = make("mean", rows, n, rare=0.25)
    residuals = matches(found[30:], torch.stack([row - sum(rows) / S for row in rows]))
    assert None not in residuals
    assert len(set(residuals)) == 10
    assert not set(residuals) & set(matches(found[:30], rows))


def blobs() -> tuple[Tensor, Tensor]:
    """Five clusters far apart, of 20 rows each but the last one, which is a single row."""
    centres = 30 * torch.eye(5, D, dtype=torch.float64)
    rows = torch.cat([centre + 0.1 * normal(20, seed=i) for i, centre in enumerate(centres)])
    return rows[:81], torch.arange(5).repeat_interleave(20)[:81]


def test_rows_minus_their_centroid_one_of_each_cluster_first() -> None:
    rows, cluster = blobs()
    means = torch.stack([rows[cluster == c].mean(0) for c in range(5)])
    found = rare.centroid(rows, 5, generator())
    assert sorted(cluster[found.of[:4]].tolist()) == [0, 1, 2, 3]
    assert 80 not in found.of.tolist()  # alone in its cluster: nothing is left of it
    assert sorted(found.of.tolist()) == list(range(80))
    # The centroid of the mini-batches is the mean of the rows they held, not of all rows.
    expected = rows[found.of] - means[cluster[found.of]]
    assert (found.vectors - expected).norm(dim=1).max() < 0.1 * expected.norm(dim=1).mean()
    start = make("centroid", rows, 50, rare=0.1)[45:]
    closest = (start.double() @ unit(rows - means[cluster]).nan_to_num().T).max(1)
    assert closest.values.min() > 0.97
    assert len(set(cluster[closest.indices[:4]].tolist())) == 4


def test_more_clusters_than_rows() -> None:
    rows = blobs()[0][::9]
    found = make("centroid", rows, 40, rare=0.2)
    assert found.shape == (40, D)


def slow_lof(rows: np.ndarray, k: int) -> np.ndarray:
    """Local outlier factors: definitions 3 to 7 of Breunig et al. 2000, one row at a time."""
    count = len(rows)
    distance = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in rows] for a in rows])
    nearest = [
        sorted(set(range(count)) - {i}, key=lambda j: distance[i, j])[:k] for i in range(count)
    ]
    k_distance = [distance[i, nearest[i][-1]] for i in range(count)]
    density = [
        1 / np.mean([max(k_distance[j], distance[i, j]) for j in nearest[i]]) for i in range(count)
    ]
    return np.array([np.mean([density[j] for j in nearest[i]]) / density[i] for i in range(count)])


@pytest.mark.parametrize("neighbours", [5, 250])
def test_outliers_are_the_local_outliers(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rare, "NEIGHBOURS", neighbours)
    rows = normal() * torch.linspace(1, 3, S).double()[:, None]
    factors = slow_lof(rows.numpy(), min(neighbours, S - 1))
    strongest = np.argsort(-factors)
    found = make("outlier", rows, 40, rare=0.25)
    assert matches(found[30:], rows) == strongest[:10].tolist()
    assert not set(matches(found[:30], rows)) & set(strongest[:10].tolist())


def test_the_neighbours_of_the_post_are_used_where_there_are_enough() -> None:
    rows = normal(260, 3)
    strongest = np.argsort(-slow_lof(rows.numpy(), 250))
    found = make("outlier", rows, 20, rare=0.5)
    assert matches(found[10:], rows) == strongest[:10].tolist()
