"""Streamed moments against SciPy's of all rows at once."""

from __future__ import annotations

import copy

import pytest
import scipy.stats
import torch
from making import rows
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.metrics import moments
from ensemble_sae.metrics.moments import Moments

ROWS, COLUMNS = 600, 7
CUTS = [[ROWS], [1] * ROWS, [1, 300, 299], [0, 599, 1], [100] * 6]


def skewed(offset: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Columns of several scales, with heavy tails to one side."""
    scale = 10.0 ** torch.arange(-3, 4)
    return (((rows(ROWS, COLUMNS).exp() - 1) + offset) * scale).to(dtype)


def streamed(values: Tensor, cuts: list[int]) -> Moments:
    found = Moments()
    for part in values.split(cuts):
        found.add(part)
    return found


def expect(found: Moments, values: Tensor, tolerance: float = 1e-9) -> None:
    exact = values.double()
    exact = exact - exact[0]  # SciPy's own rounding, which a large mean would show, is not meant
    x = exact.numpy()
    assert found.rows == len(x)
    assert (found.mean - values[0].double()).numpy() == pytest.approx(x.mean(0), rel=tolerance)
    assert found.variance.numpy() == pytest.approx(x.var(0), rel=tolerance)
    assert found.skewness.numpy() == pytest.approx(scipy.stats.skew(x), rel=tolerance)
    kurtosis = scipy.stats.kurtosis(x, fisher=False)
    assert found.kurtosis.numpy() == pytest.approx(kurtosis, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: str(cuts[:3]))
def test_moments_do_not_depend_on_how_rows_are_cut(cuts: list[int], dtype: torch.dtype) -> None:
    values = skewed(dtype=dtype)
    expect(streamed(values, cuts), values)


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: str(cuts[:3]))
def test_a_large_mean_costs_no_digits(cuts: list[int]) -> None:
    values = skewed(1e6)
    found = streamed(values, cuts)
    x = (values - values[0]).numpy()
    assert found.variance.numpy() == pytest.approx(x.var(0), rel=1e-9)
    assert found.skewness.numpy() == pytest.approx(scipy.stats.skew(x), rel=1e-9)
    kurtosis = scipy.stats.kurtosis(x, fisher=False)
    assert found.kurtosis.numpy() == pytest.approx(kurtosis, rel=1e-9)
    assert found.mean.numpy() == pytest.approx(values.mean(0).numpy(), rel=1e-14)


def test_batches_are_cut_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "ELEMENTS", 3 * COLUMNS + 1)
    expect(streamed(skewed(), [ROWS]), skewed())
    monkeypatch.setattr(moments, "ELEMENTS", 1)
    expect(streamed(skewed(), [ROWS]), skewed())


def test_merged_moments_are_those_of_all_rows() -> None:
    values = skewed()
    values[400:] += 5 * values.std(0)
    parts = [streamed(part, [part.shape[0]]) for part in values.split([150, 250, 200])]
    unchanged = copy.deepcopy(parts[1:])
    whole = Moments()
    for part in [Moments(), *parts, Moments()]:
        whole.merge(part)
    expect(whole, values)
    assert parts[0].rows == 150  # the first was taken over, not taken away
    for part, before in zip(parts[1:], unchanged, strict=True):
        assert torch.equal(part.kurtosis, before.kurtosis)
    whole.add(values[:0])
    expect(whole, values)


def test_known_moments() -> None:
    gaussian = streamed(rows(200_000, 1), [200_000])
    assert float(gaussian.kurtosis) == pytest.approx(3, abs=0.05)
    assert float(gaussian.skewness) == pytest.approx(0, abs=0.02)
    coin = streamed(torch.tensor([[-1.0], [1.0]]), [1, 1])
    assert [float(x) for x in (coin.mean, coin.variance, coin.skewness, coin.kurtosis)] == [
        *(0, 1, 0, 1),
    ]


def test_a_constant_column_has_no_shape() -> None:
    values = torch.stack([torch.full((50,), 0.1), rows(50, 1)[:, 0]], dim=1)
    found = streamed(values, [7] * 7 + [1])
    found.merge(streamed(values, [50]))
    assert found.variance[0] == 0
    assert found.skewness.isnan().tolist() == [True, False]
    assert found.kurtosis.isnan().tolist() == [True, False]
    assert streamed(values[:1], [1]).kurtosis.isnan().all()


def test_a_column_that_is_not_finite_does_not_spoil_others() -> None:
    values = skewed()
    values[0, 1], values[9, 2] = torch.inf, torch.nan
    found = streamed(values, [200] * 3)
    assert found.kurtosis.isnan().tolist() == [False, True, True, *[False] * 4]
    assert torch.equal(found.kurtosis[3:], streamed(skewed(), [200] * 3).kurtosis[3:])


def test_errors() -> None:
    with pytest.raises(UserError, match="no rows"):
        _ = Moments().kurtosis
    found = streamed(rows(3, 4), [3])
    for wrong in (rows(3, 5), rows(3, 4)[0], rows(3, 4)[None]):
        with pytest.raises(UserError, match="same columns"):
            found.add(wrong)
    with pytest.raises(UserError, match="same columns"):
        found.merge(streamed(rows(3, 5), [3]))
    assert found.rows == 3
