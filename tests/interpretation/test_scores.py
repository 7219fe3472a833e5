"""Correlations and intervals against scipy; what counts where there is nothing to foretell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from interpretation.planted import examples, text

from ensemble_sae.errors import UserError
from ensemble_sae.inspection.examples import Contexts
from ensemble_sae.interpretation.fragments import split
from ensemble_sae.interpretation.scores import (
    Score,
    comparison,
    correlation,
    mean_and_interval,
    score,
)

NAN = math.nan


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_correlation_is_pearsons(scale: float, offset: float) -> None:
    true = noise(6, 300).double()
    simulated = (0.3 * true + noise(6, 300, seed=1) + offset) * scale
    expected = [scipy.stats.pearsonr(a, b).statistic for a, b in zip(true, simulated, strict=True)]
    np.testing.assert_allclose(correlation(true, simulated), expected, rtol=1e-10)


def test_only_known_values_count() -> None:
    true, simulated = noise(40, 50), noise(40, 50, seed=1)
    known = noise(40, 50, seed=2) > 0
    expected = [
        scipy.stats.pearsonr(a[k].double(), b[k].double()).statistic
        for a, b, k in zip(true, simulated, known, strict=True)
    ]
    np.testing.assert_allclose(correlation(true, simulated, known), expected, rtol=1e-9)


def test_no_correlation_with_a_constant() -> None:
    varied, constant = torch.tensor([[1.0, 2.0, 3.0]]), torch.full((1, 3), 0.1)
    assert correlation(varied, constant).isnan().all()
    assert correlation(constant, varied).isnan().all()
    assert correlation(varied, torch.tensor([[1.0, NAN, 2.0]])).isnan().all()
    for n in range(2, 100):  # whose mean is 0.1, but for rounding
        tenths = torch.full((1, n), 0.1, dtype=torch.float64)
        assert correlation(noise(1, n), tenths).isnan().all()
    one = torch.tensor([[True, False, False]])
    assert correlation(varied, varied, one).isnan().all()
    assert correlation(varied, varied, one & False).isnan().all()


def planted_split(n_features: int = 4):
    tokens = text(50)
    return split(examples(tokens, noise(n_features, *tokens.shape).relu()))


def test_scores_are_over_all_tokens_at_once() -> None:
    parts = planted_split()
    top, random = noise(4, 5, 64, seed=5), noise(4, 5, 64, seed=6)
    top[0] += parts.top.activations[0]
    found = score(parts, top, random)
    for f in range(4):
        a, b = parts.top.activations[f].flatten(), parts.random.activations[f].flatten()
        pairs = {
            "top": (a, top[f].flatten()),
            "random": (b, random[f].flatten()),
            "top_and_random": (torch.cat([a, b]), torch.cat([top[f], random[f]]).flatten()),
        }
        for name, (true, simulated) in pairs.items():
            expected = scipy.stats.pearsonr(true.double(), simulated.double()).statistic
            assert getattr(found, name)[f] == pytest.approx(expected, rel=1e-9)
    assert found.top[0] > 0.4


def test_a_constant_simulation_scores_zero_and_a_silent_feature_nothing() -> None:
    parts = planted_split(3)
    parts.random.activations[1] = 0  # silent on random fragments
    parts.top.activations[2] = parts.random.activations[2] = 0  # silent everywhere
    simulated = noise(3, 5, 64)
    simulated[0] = 0.3
    found = score(parts, simulated, simulated)
    assert [values[0].item() for values in found] == [0, 0, 0]
    assert found.random[1].isnan()
    assert not found.top[1].isnan()
    assert not found.top_and_random[1].isnan()
    assert all(values[2].isnan() for values in found)


def test_a_failed_simulation_has_no_score() -> None:
    parts = planted_split(1)
    nothing = torch.full((1, 5, 64), NAN)
    assert all(values.isnan().all() for values in score(parts, nothing, nothing))


def test_absent_fragments_do_not_count() -> None:
    parts = planted_split(1)
    parts.top.fragments[0, 2:] = -1
    simulated = noise(1, 5, 64)
    expected = scipy.stats.pearsonr(
        parts.top.activations[0, :2].flatten().double(), simulated[0, :2].flatten().double()
    )
    found = score(parts, simulated, simulated).top[0]
    assert found == pytest.approx(expected.statistic, rel=1e-9)


def test_interval_is_students() -> None:
    values = noise(37).double()
    found = mean_and_interval(torch.cat([values, torch.tensor([NAN, NAN])]))
    low, high = scipy.stats.t.interval(
        0.95, df=36, loc=values.mean().item(), scale=scipy.stats.sem(values)
    )
    assert found == pytest.approx((values.mean().item(), low, high, 37, 2), rel=1e-9)


def test_undefined_values_are_left_out_or_nought() -> None:
    values = torch.tensor([0.5, NAN, 0.7, NAN])
    assert mean_and_interval(values).mean == pytest.approx(0.6)
    zero = mean_and_interval(values, "zero")
    assert (zero.mean, zero.n, zero.undefined) == (pytest.approx(0.3), 4, 2)
    one = mean_and_interval(torch.tensor([0.5, NAN]))
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    none = mean_and_interval(torch.tensor([NAN]))
    assert math.isnan(none.mean)
    assert (none.n, none.undefined) == (0, 1)


def test_comparison_is_a_row_per_dictionary() -> None:
    values = torch.tensor([0.1, 0.2, NAN])
    found = comparison(
        {"mine": Score(values, values + 1, values + 2), "random": Score(*[values] * 3)}
    )
    assert list(found.index) == ["mine", "random"]
    assert found.loc["mine", ("random", "mean")] == pytest.approx(1.15)
    assert found.loc["random", ("top", "undefined")] == 1


# --- which fragments


def test_split_is_the_published_one() -> None:
    tokens = text(50)
    given = examples(tokens, noise(3, *tokens.shape).relu())
    parts = split(given)
    assert torch.equal(parts.shown.fragments, given.top.fragments[:, 0::4])
    assert torch.equal(parts.top.fragments, given.top.fragments[:, 2::4])
    assert torch.equal(parts.top.activations, given.top.activations[:, 2::4])
    assert torch.equal(parts.shown.tokens, given.top.tokens[:, 0::4])
    for f in range(3):
        scored = {*parts.top.fragments[f].tolist(), *parts.random.fragments[f].tolist()}
        fitted = [n for n in parts.fitted.fragments[f].tolist() if n >= 0]
        assert len(fitted) == len(set(fitted)) == 30
        assert not scored & {*fitted, *parts.shown.fragments[f].tolist()}


def test_no_fragment_is_used_twice() -> None:
    tokens = text(50)
    given = examples(tokens, noise(1, *tokens.shape).relu())
    same = Contexts(*(values.clone() for values in given.top))
    given = given._replace(random=same.of(torch.tensor([0])), spread=same)
    parts = split(given, fit_spread=None)
    taken = given.top.fragments[0]
    left = [n for n in range(20) if n % 4 not in (0, 2)]  # neither shown nor scored
    assert parts.random.fragments[0].tolist() == taken[left[:5]].tolist()
    fitted = [n for n in parts.fitted.fragments[0].tolist() if n >= 0]
    expected = {n for place, n in enumerate(taken.tolist()) if place % 4 != 2}
    assert set(fitted) == expected - set(parts.random.fragments[0].tolist())
    assert len(fitted) == len(set(fitted))


def test_rules_can_be_given_what_is_shown_alone() -> None:
    tokens = text(50)
    parts = split(examples(tokens, noise(2, *tokens.shape)), fit_top=5, fit_random=0)
    assert torch.equal(parts.fitted.fragments, parts.shown.fragments)


@pytest.mark.parametrize(("shown", "scored"), [(11, 5), (5, 11), (0, 5), (5, 0)])
def test_too_few_fragments(shown: int, scored: int) -> None:
    tokens = text(50)
    with pytest.raises(UserError, match="20 top and 20 random"):
        split(examples(tokens, noise(1, *tokens.shape)), shown=shown, scored=scored)
