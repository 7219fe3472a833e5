"""Planted features: each kind of rule is recognised and foretells what was not seen."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from interpretation.planted import FRAGMENTS, WIDTH, examples, text

from ensemble_sae.errors import UserError
from ensemble_sae.inspection.examples import Examples
from ensemble_sae.interpretation import rules as module
from ensemble_sae.interpretation.fragments import split
from ensemble_sae.interpretation.rules import RuleSettings, explain_by_rules
from ensemble_sae.interpretation.scores import mean_and_interval
from ensemble_sae.interpretation.tables import Groups, fit

VOCABULARY = 400
TOKENS = text(VOCABULARY)
NAMES = [f" w{token}" for token in range(VOCABULARY)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lookup(values: dict[int, float]) -> torch.Tensor:
    table = torch.zeros(VOCABULARY)
    for token, value in values.items():
        table[token] = value
    return table


def before(tokens: torch.Tensor) -> torch.Tensor:
    """What is a function of the token before, given one of the current; 0 at the first."""
    return torch.cat([torch.zeros(len(tokens), 1), tokens[:, :-1]], 1)


SET = {7: 3.0, 12: 1.0, 30: 2.0, 41: 4.0, 90: 5.0}
WAVE = torch.sin(torch.arange(WIDTH) / 5).expand(FRAGMENTS, WIDTH)
FIRST = (torch.arange(WIDTH) < 1).float().expand(FRAGMENTS, WIDTH)
PLANTED = {
    "token": lookup({17: 2.5})[TOKENS.long()],
    "tokens": lookup(SET)[TOKENS.long()],
    "previous": before(lookup(SET)[TOKENS.long()]),
    "position": WAVE + 0.1 * noise(FRAGMENTS, WIDTH),
}


def explained(*activations: torch.Tensor, **options):
    return explain_by_rules(examples(TOKENS, torch.stack(activations)), NAMES, **options)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_feature_is_recognised(kind: str, sign: int) -> None:
    found = explained(sign * (PLANTED[kind] + 0.02 * noise(FRAGMENTS, WIDTH, seed=1)))
    assert found.kinds == [kind]
    assert min(found.score.top[0], found.score.top_and_random[0]) > 0.9
    if not found.score.random[0].isnan():
        assert found.score.random[0] > 0.9
    assert found.fitted[0] > 0.85


def test_all_at_once_is_one_by_one() -> None:
    """Features do not see each other's tables, nor do blocks of features."""
    together = explained(*PLANTED.values(), noise(FRAGMENTS, WIDTH))
    given = examples(TOKENS, torch.stack([*PLANTED.values(), noise(FRAGMENTS, WIDTH)]))
    for f in range(5):
        alone = explain_by_rules(given.of(torch.tensor([f])), NAMES)
        assert alone.kinds[0] == together.kinds[f]
        assert alone.texts[0] == together.texts[f]
        assert torch.equal(alone.top[0], together.top[f])
        assert torch.equal(alone.random[0], together.random[f])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = explained(*PLANTED.values())
    monkeypatch.setattr(module, "BLOCK", 3)
    blocks = explained(*PLANTED.values())
    assert (whole.kinds, whole.texts) == (blocks.kinds, blocks.texts)
    for a, b in zip(whole.score, blocks.score, strict=True):
        assert torch.equal(a, b)


def test_texts() -> None:
    stretch = ((torch.arange(WIDTH) > 39) & (torch.arange(WIDTH) < 50)).float()
    end = (torch.arange(WIDTH) > 50).float()
    wide = [stretch.expand(FRAGMENTS, WIDTH), end.expand(FRAGMENTS, WIDTH)]
    found = explained(*PLANTED.values(), FIRST, *wide)
    assert found.texts[0] == "on ` w17`"
    assert found.texts[1].startswith("on ")
    assert {f"` w{token}`" for token in SET} <= {*found.texts[1].removeprefix("on ").split(", ")}
    assert found.texts[2].startswith("after ` w")
    # A text starts where no token is before: either rule says it.
    beginning = "at the beginning of the fragment (position 0)"
    assert found.texts[4] in ("after (beginning)", beginning)
    assert found.texts[5] == "at positions 40-49"
    assert found.texts[6] == "at the end of the fragment (positions 51-63)"
    only = RuleSettings(kinds=("position",))
    assert explained(-FIRST, settings=only).texts == [f"except {beginning}"]
    low = explained(-PLANTED["token"] + 0.02 * noise(FRAGMENTS, WIDTH))
    assert low.texts == ["low on ` w17`"]


def test_noise_scores_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    activations = torch.randn(60, *TOKENS.shape, generator=generator).relu()
    found = explain_by_rules(examples(TOKENS, activations), NAMES)
    for values in found.score:
        summary = mean_and_interval(values)
        assert abs(summary.mean) < 0.03
        assert summary.n == 60
    assert found.fitted.max() < 0.2


def test_a_silent_feature_has_no_rule_and_no_score() -> None:
    found = explained(torch.zeros(FRAGMENTS, WIDTH), torch.full((FRAGMENTS, WIDTH), 0.1))
    assert found.kinds == ["none", "none"]
    assert found.texts == ["no rule found"] * 2
    assert found.fitted.isnan().all()
    assert all(values.isnan().all() for values in found.score)


def test_features_without_fragments() -> None:
    given = examples(TOKENS, torch.stack([PLANTED["token"]] * 2))
    for contexts in (given.top, given.random):
        for values, nothing in zip(contexts, (0, 0, -1), strict=True):
            values[1] = nothing
        contexts.fragments[0, 12:] = -1
    found = explain_by_rules(given, NAMES)
    assert found.kinds == ["token", "none"]
    assert found.score.top[0] == pytest.approx(1)
    assert found.score.top[1].isnan()
    nobody = explain_by_rules(given.of(torch.tensor([], dtype=torch.long)), NAMES)
    assert nobody.kinds == []
    assert nobody.top.shape == (0, 5, WIDTH)


def by_hand(given: Examples, size: int, shrink: float) -> np.ndarray:
    """A token set of one feature, fitted and foretold with dictionaries and loops."""
    parts = split(given)
    tokens = parts.fitted.tokens[0][parts.fitted.fragments[0] >= 0].flatten().tolist()
    values = parts.fitted.activations[0][parts.fitted.fragments[0] >= 0].flatten().tolist()
    own: dict[int, list[float]] = {}
    for token, value in zip(tokens, values, strict=True):
        own.setdefault(token, []).append(value)
    n, mean = len(values), float(np.mean(values, dtype=np.float64))
    error = float(np.sum((np.array(values) - mean) ** 2))
    gain = {}
    for token, mine in own.items():
        others = [v for t, v in zip(tokens, values, strict=True) if t != token]
        split_error = np.var(mine) * len(mine) + np.var(others) * (n - len(mine))
        gain[token] = error - split_error
    kept = sorted(gain, key=lambda token: -gain[token])[:size]
    rest = [v for t, v in zip(tokens, values, strict=True) if t not in kept]
    base = float(np.mean(rest))
    table = {t: (sum(own[t]) + shrink * base) / (len(own[t]) + shrink) for t in kept}
    return np.vectorize(lambda token: table.get(token, base))(parts.top.tokens[0].numpy())


@pytest.mark.parametrize(("kind", "size", "shrink"), [("token", 1, 0.0), ("tokens", 9, 1.5)])
def test_tables_against_loops(kind: str, size: int, shrink: float) -> None:
    given = examples(TOKENS, (PLANTED["tokens"] + 0.5 * noise(FRAGMENTS, WIDTH))[None])
    settings = RuleSettings(kinds=(kind,), size=size, shrink=shrink)
    found = explain_by_rules(given, NAMES, settings)
    np.testing.assert_allclose(found.top[0], by_hand(given, size, shrink), rtol=1e-5)


def test_gains_are_what_the_error_loses() -> None:
    symbols = torch.randint(0, 6, (2, 4, 10), generator=torch.Generator().manual_seed(0)).numpy()
    values = noise(2, 4, 10).double().numpy()
    known = noise(2, 4, 10, seed=1).numpy() > -1
    table = fit(Groups.of(symbols, 9), values, known, size=6, shrink=0.0)
    for f in range(2):
        found, means, gains = table.entries(f)
        assert sorted(found) == list(range(6))
        assert (np.diff(gains) <= 0).all()
        own, kept = symbols[f][known[f]], values[f][known[f]]
        for symbol, mean, gain in zip(found, means, gains, strict=True):
            inside, outside = kept[own == symbol], kept[own != symbol]
            lost = np.var(kept) * len(kept) - np.var(inside) * len(inside)
            assert gain == pytest.approx(lost - np.var(outside) * len(outside), rel=1e-9)
            assert mean == pytest.approx(inside.mean())


def test_the_kind_is_chosen_without_the_scored_fragments() -> None:
    given = examples(TOKENS, torch.stack([*PLANTED.values(), noise(FRAGMENTS, WIDTH)]))
    first = explain_by_rules(given, NAMES)
    scored = split(given)
    for contexts, own in ((given.top, scored.top), (given.random, scored.random)):
        among = (contexts.fragments[:, :, None] == own.fragments[:, None, :]).any(2)
        contexts.activations[among] = 99 * noise(*contexts.activations[among].shape)
    second = explain_by_rules(given, NAMES)
    assert first.texts == second.texts
    assert torch.equal(first.fitted, second.fitted)
    assert torch.equal(first.top, second.top)


def test_cross_validation_is_over_fragments() -> None:
    """`fitted` is the correlation of what is foretold of a fold from the others: by hand."""
    given = examples(TOKENS, (PLANTED["position"] + noise(FRAGMENTS, WIDTH))[None])
    found = explain_by_rules(given, NAMES, RuleSettings(kinds=("position",), folds=3))
    parts = split(given)
    values = parts.fitted.activations[0].double().numpy()
    assert (parts.fitted.fragments >= 0).all()
    told = np.zeros_like(values)
    for fold in range(3):
        mean = np.delete(values, np.s_[fold::3], axis=0).mean(0)
        padded = [mean[1], *mean[1:], mean[-1]]
        smooth = [(padded[i] + 2 * padded[i + 1] + padded[i + 2]) / 4 for i in range(WIDTH - 1)]
        told[fold::3] = [mean[0], *smooth]
    expected = scipy.stats.pearsonr(values.ravel(), told.ravel()).statistic
    assert found.fitted[0] == pytest.approx(expected, rel=1e-9)


def test_more_fragments_explain_more() -> None:
    many = {token: 1.0 + token % 5 for token in range(20, 60)}
    noisy = lookup(many)[TOKENS.long()] + 0.5 * noise(FRAGMENTS, WIDTH)
    few = explained(noisy, fit_top=5, fit_random=0, settings=RuleSettings(size=40))
    all_ = explained(noisy, settings=RuleSettings(size=40))
    assert all_.score.top_and_random[0] > few.score.top_and_random[0] + 0.03


@pytest.mark.parametrize(
    "options", [{"kinds": ("word",)}, {"kinds": ()}, {"size": 0}, {"folds": 1}, {"shrink": -1.0}]
)
def test_settings_that_make_no_rules(options: dict) -> None:
    with pytest.raises(UserError):
        RuleSettings(**options)
