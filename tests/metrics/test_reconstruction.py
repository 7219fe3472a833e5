"""Metrics against NumPy."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import reference
import torch
from making import rows

from ensemble_sae.metrics.reconstruction import Variance, density_histogram, fvu, pareto


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_variance_is_streamed_without_losing_digits(offset: float, dtype: torch.dtype) -> None:
    x = (rows(1000, 5) * 0.5 + offset).to(dtype)
    variance = Variance()
    for part in x.split([1, 300, 699]):
        variance.add(part)
    exact = x.double().numpy()
    assert variance.rows == 1000
    assert variance.total == pytest.approx(((exact - exact.mean(0)) ** 2).sum(), rel=1e-9)
    assert Variance().total == 0.0


def test_fvu() -> None:
    x, y = rows(40, 3), rows(40, 3, seed=1)
    error = torch.stack([(x - y).square().sum(), (x - x.mean(0)).square().sum(), torch.zeros(())])
    total = float((x - x.mean(0)).square().sum())
    found = fvu(error, total).tolist()
    assert found == pytest.approx([reference.fvu(x.numpy(), y.numpy()), 1.0, 0.0])
    assert all(math.isnan(value) for value in fvu(error, 0.0))


def test_density_histogram() -> None:
    count = 10**8
    exponents = np.array([-7.9, -6.9, -6.6, -3.1, -2.01, -0.3, -0.01])
    shares = np.append(10**exponents, [1.0, 0.0, 0.0])
    firing = torch.tensor(np.round(shares * count)).long()
    found = density_histogram(torch.stack([firing, torch.full_like(firing, count)]), count)
    expected = np.histogram(np.clip(np.append(exponents, -1e-9), -7, 0), np.arange(-7, 0.1, 0.25))
    assert found[0].tolist() == [2, *expected[0]]
    assert found[1].tolist() == [0] * 28 + [10]


def test_pareto() -> None:
    draw = random.Random(0)
    for _ in range(200):
        values = [draw.choice([0.1, 0.2, 0.3, 0.4, 1.0, math.nan]) for _ in range(16)]
        errors, sparsity = values[:8], [10 * value for value in values[8:]]
        assert pareto(errors, sparsity) == reference.pareto(errors, sparsity)
    assert pareto([], []) == []
    assert pareto([0.5, 0.1, 0.6], [2.0, math.nan, 1.0]) == [True, False, True]
