"""Co-activity against numpy.cov, scipy's pearsonr and loops over the rows, however rows come."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from making import rows
from scipy.stats import pearsonr
from torch import Tensor

from ensemble_sae.analysis import Coactivity
from ensemble_sae.errors import UserError

N, M, B = 7, 5, 60
MODULE = importlib.import_module("ensemble_sae.analysis.coactivity")


def codes(n: int, seed: int, count: int = B, share: float = 0.4) -> Tensor:
    """Rows that fire where a draw allows, of shared strength; feature 1 fires always."""
    common = rows(count, 1, 99).abs()
    values = rows(count, n, seed).abs() + common
    fires = rows(count, n, seed + 1).sigmoid() < share + 0.1 * torch.arange(n) / n
    fires[:, 1] = True
    return torch.where(fires, values, 0.0)


def sparse(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    """Force the way in which products are made."""
    monkeypatch.setattr(MODULE, "DENSE", 0 if wanted else math.inf)


def filled(
    one: Tensor, two: Tensor | None, sizes: tuple[int, ...] = (B,), **options: Any
) -> Coactivity:
    found = Coactivity(one.shape[1], None if two is None else two.shape[1], **options)
    left = one.split(list(sizes))
    for a, b in zip(left, left if two is None else two.split(list(sizes)), strict=True):
        found.add(a) if two is None else found.add(a, b)
    return found


WAYS = pytest.mark.parametrize("way", [True, False], ids=["sparse", "dense"])
PAIRS = pytest.mark.parametrize("of_one", [True, False], ids=["one", "two"])


@WAYS
@PAIRS
@pytest.mark.parametrize("sizes", [(B,), (1, 0, 22, 37), (30, 30)], ids=str)
def test_all_is_that_of_numpy_and_scipy(
    sizes: tuple[int, ...], of_one: bool, way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(monkeypatch, way)
    monkeypatch.setattr(MODULE, "ELEMENTS", 24)  # several blocks, of rows and of results
    monkeypatch.setattr(MODULE, "RESULTS", 16)
    monkeypatch.setattr(MODULE, "PAIRS", 30)
    one, two = codes(N, 0), codes(M, 5)
    two[:, 3] = -two[:, 3]
    found = filled(one, None if of_one else two, sizes)
    a, b = one.numpy(), (one if of_one else two).numpy()
    n, m = a.shape[1], b.shape[1]
    assert found.rows == B
    joint = np.cov(a.T, b.T, ddof=0)[:n, n:]
    np.testing.assert_allclose(found.covariance.numpy(), joint, atol=1e-13)
    for i in range(n):
        for j in range(m):
            both = [r for r in range(B) if a[r, i] != 0 and b[r, j] != 0]
            assert int(found.together[i, j]) == len(both)
            expected = len(both) / sum(a[r, i] != 0 for r in range(B))
            assert float(found.other_given_feature[i, j]) == pytest.approx(expected)
            r = pearsonr(a[:, i], b[:, j]).statistic
            assert float(found.correlation[i, j]) == pytest.approx(r, abs=1e-12)
            inside = np.cov(a[both, i], b[both, j], ddof=0)[0, 1]
            assert float(found.covariance_together[i, j]) == pytest.approx(inside, abs=1e-13)
    assert found.fired.tolist() == (a != 0).sum(0).tolist()
    assert found.others_fired.tolist() == (b != 0).sum(0).tolist()


@WAYS
def test_what_is_read_does_not_change_what_is_kept(
    way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(monkeypatch, way)
    one = codes(N, 0)
    found = filled(one[:40], None, (40,))
    for name in ("covariance", "correlation", "covariance_together", "together"):
        first = getattr(found, name)
        assert torch.equal(first, getattr(found, name))
        first.zero_()
    found.strongest(3)
    found.add(one[40:])
    torch.testing.assert_close(found.covariance, filled(one, None).covariance)


@WAYS
@PAIRS
@pytest.mark.parametrize("offset", [1e3, 1e7])
def test_large_means_cost_no_digits(
    offset: float, of_one: bool, way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Always firing features far from 0: their sums of products would be wrong in the 2nd digit."""
    sparse(monkeypatch, way)
    one, two = rows(500, 4, 0), rows(500, 3, 1) + rows(500, 4, 0)[:, :3]
    found = filled(one + offset, None if of_one else two - offset, (200, 300))
    exact = np.cov(one.numpy().T, (one if of_one else two).numpy().T, ddof=0)[:4, 4:]
    tolerance = 1e-15 * offset * 50
    np.testing.assert_allclose(found.covariance.numpy(), exact, atol=tolerance)
    np.testing.assert_allclose(found.covariance_together.numpy(), exact, atol=tolerance)
    plain = torch.einsum("ri,rj->ij", one + offset, one + offset) / 500
    mean = (one + offset).mean(0)
    wrong = (plain - mean[:, None] * mean).numpy()
    if offset == 1e7:
        assert np.abs(wrong - np.cov(one.numpy().T, ddof=0)).max() > 1e-3


@WAYS
@PAIRS
def test_float32_sums_are_about_right(
    of_one: bool, way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(monkeypatch, way)
    one, two = codes(N, 0).float(), None if of_one else codes(M, 5).float()
    found = filled(one + 50 * (one > 0), two, (20, 40), dtype=torch.float32)
    exact = filled((one + 50 * (one > 0)).double(), two, (20, 40))
    assert found.covariance.dtype == torch.float64
    assert torch.equal(found.together, exact.together)
    torch.testing.assert_close(found.correlation, exact.correlation, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.covariance_together, exact.covariance_together, atol=1e-5, rtol=1e-5
    )


def test_features_that_never_fire_or_never_change() -> None:
    one = torch.tensor([[0.0, 0.1, 1, 0], [0, 0.1, 0, 0], [0, 0.1, 2, 5], [0, 0.1, 0, 0]])
    found = filled(one, None, (1, 3))
    assert found.varies.tolist() == [False, False, True, True]
    assert found.correlation.isnan().sum() == 12
    torch.testing.assert_close(found.covariance[:2], torch.zeros(2, 4).double())
    assert found.other_given_feature[0].isnan().all()
    assert found.other_given_feature[2].tolist() == [0, 1, 1, 0.5]
    alone = found.covariance_together
    assert alone[0].isnan().all()
    assert float(alone[2, 2]) == 0.25  # of 1 and 2
    assert float(alone[2, 3]) == 0  # on a single row


def test_a_code_with_itself_as_two() -> None:
    one = codes(N, 0)
    two = filled(one, one)
    for name in ("covariance", "correlation", "covariance_together", "together"):
        torch.testing.assert_close(getattr(two, name), getattr(filled(one, None), name))


def test_leading_dimensions_are_rows() -> None:
    one, two = codes(N, 0), codes(M, 5)
    found = Coactivity(N, M)
    found.add(one.reshape(5, 12, N), two.reshape(5, 12, M))
    torch.testing.assert_close(found.covariance, filled(one, two).covariance)


@PAIRS
def test_the_strongest_pairs(of_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "RESULTS", 16)
    one = codes(N, 0)
    one[:, 6] = torch.where(one[:, 2] == 0, 1.0, 0.0)  # one or the other
    one[:, 0], one[3, 0] = 0, 1  # fires once
    two = one if of_one else codes(M, 5)
    found = filled(one, None if of_one else two)
    table = np.corrcoef(one.numpy().T, two.numpy().T)[:N, N:]
    pairs = [(i, j) for i in range(1, N) for j in range(len(table[0])) if not of_one or i < j]
    pairs.sort(key=lambda pair: -abs(table[pair]))
    strongest = found.strongest(8)
    assert list(zip(strongest["feature"], strongest["other"], strict=True)) == pairs[:8]
    for row in strongest.itertuples():
        at = (int(row.feature), int(row.other))
        assert row.correlation == pytest.approx(table[at])
        assert row.covariance == pytest.approx(float(found.covariance[at]))
        assert row.together == int(found.together[at])
        assert row.other_given_feature == pytest.approx(row.together / int(found.fired[at[0]]))
        assert row.feature_given_other == pytest.approx(
            row.together / int(found.others_fired[at[1]])
        )
    if of_one:
        assert pairs[0] == (2, 6)
        assert strongest.loc[0, "correlation"] < 0
    assert len(found.strongest(1000)) == len(pairs)
    assert 0 in set(found.strongest(1000, min_fired=1)["feature"])
    assert found.strongest(1000, min_fired=B + 1).empty


def test_sparse_codes_are_multiplied_sparsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where few fire, and only there; to the same result."""
    made = []
    real = MODULE._add_sparse
    monkeypatch.setattr(MODULE, "_add_sparse", lambda *a: (made.append(1), real(*a)))
    few, many = (torch.where(rows(200, 100, s) > t, 1.5, 0.0) for s, t in ((0, 2.2), (1, 0.5)))
    found = filled(few, None, (200,))
    assert made
    made.clear()
    other = filled(many, None, (200,))
    assert not made
    for one, result in ((few, found), (many, other)):
        expected = np.cov(one.numpy().T, ddof=0)
        np.testing.assert_allclose(result.covariance.numpy(), expected, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="too much memory") as caught:
        Coactivity(20_000)
    assert caught.value.found == "20,000 x 20,000 pairs: 9.6 GB in torch.float64"
    assert caught.value.allowed == "max_bytes: 4.3 GB"
    assert "float32" in str(caught.value.next_step)
    Coactivity(20_000, dtype=torch.float32, max_bytes=4_800_000_000)
    with pytest.raises(UserError, match="too much memory"):
        Coactivity(20_000, dtype=torch.float32, max_bytes=4_799_999_999)
    with pytest.raises(UserError, match=r"8\.0 GB"):
        Coactivity(25_000, 10_000)


def test_what_is_not_the_code_of_the_same_rows_is_refused() -> None:
    one, two = codes(N, 0), codes(M, 5)
    for made, given in (
        (Coactivity(N), (two,)),
        (Coactivity(N), (one, two)),
        (Coactivity(N, M), (one,)),
        (Coactivity(N, M), (one, two[1:])),
        (Coactivity(N, M), (two, one)),
    ):
        with pytest.raises(UserError, match="same rows"):
            made.add(*given)
        assert made.rows == 0
    for value in (math.nan, math.inf):
        bad = one.clone()
        bad[3, 3] = value
        with pytest.raises(UserError, match="not finite"):
            Coactivity(N).add(bad)
    with pytest.raises(UserError, match="dtype"):
        Coactivity(N, dtype=torch.float16)
    with pytest.raises(UserError, match="a feature at least"):
        Coactivity(0)


def test_more_rows_than_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULE.EXACT, torch.float32, 70)
    found = filled(codes(N, 0), None, dtype=torch.float32)
    with pytest.raises(UserError, match="float64") as caught:
        found.add(codes(N, 0))
    assert caught.value.found == "120 rows in torch.float32"


def test_nothing_is_told_before_there_are_rows() -> None:
    found = Coactivity(N)
    for name in ("covariance", "correlation", "covariance_together", "together", "varies"):
        with pytest.raises(UserError, match="No rows"):
            getattr(found, name)
    with pytest.raises(UserError, match="No rows"):
        found.strongest()
    with pytest.raises(UserError, match="number of pairs"):
        found.strongest(0)
