"""The explainer that needs no language model: one simple rule per feature.

Four kinds: the best single token, a set of tokens, a set of tokens before, the position in the
fragment. Each is fitted on fragments that are not scored; which kind a feature gets is decided on
those alone, by cross-validation over fragments. What the rule foretells is scored as what a
language model simulates is (`scores.score`). Bills et al. 2023, "Language models can explain
neurons in language models", score lookup tables of tokens beside their explanations, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.inspection.examples import Contexts, Examples
from ensemble_sae.interpretation.fragments import Split, present, split
from ensemble_sae.interpretation.rule_texts import tell_position, tell_previous, tell_tokens
from ensemble_sae.interpretation.scores import Score, correlation, score
from ensemble_sae.interpretation.tables import Bools, Floats, Groups, Ints, Table, fit, profiles
from ensemble_sae.lm.texts import Texts, reader

NONE = "none"
KINDS = ("token", "tokens", "previous", "position")
BLOCK = 500  # features at a time: about 200 MB with 30 fragments of 64 tokens


@dataclass(frozen=True)
class RuleSettings:
    """How rules are fitted.

    Attributes:
        kinds: which of `KINDS` may be chosen.
        size: how many tokens a set may have.
        shrink: a token's value is drawn towards the mean as if it had been seen that many times
            more, with the mean's activation.
        folds: into how many parts the fragments are dealt to choose the kind.
    """

    kinds: tuple[str, ...] = KINDS
    size: int = 16
    shrink: float = 1.0
    folds: int = 5

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise UserError(
                "There is no such kind of rule.", found=repr(unknown), allowed=", ".join(KINDS)
            )
        if self.size < 1 or self.shrink < 0 or self.folds < 2:
            raise UserError(
                "Rules cannot be fitted like this.",
                found=f"size {self.size}, shrink {self.shrink}, folds {self.folds}",
                allowed="size at least 1, shrink at least 0, folds at least 2",
            )


class Rules(NamedTuple):
    """The rules of F features and what they foretell.

    Attributes:
        kinds: of each, one of `KINDS`, or `NONE` where no kind foretold anything.
        texts: of each, to be read: "on ` self`, ` cls`".
        fitted: correlation of what the kind foretells of fragments it was not fitted on, in the
            cross-validation that chose it, `[F]`; NaN where nothing could be fitted.
        top, random: what is foretold of the scored fragments, `[F, scored, w]`.
        score: of that.
    """

    kinds: list[str]
    texts: list[str]
    fitted: Tensor
    top: Tensor
    random: Tensor
    score: Score


def explain_by_rules(
    examples: Examples,
    texts: Texts,
    settings: RuleSettings | None = None,
    *,
    shown: int = 5,
    scored: int = 5,
    fit_top: int | None = None,
    fit_random: int | None = None,
    fit_spread: int | None = 0,
) -> Rules:
    """Fit a rule to every feature, foretell the scored fragments, score.

    Args:
        examples: of F features; of any sign.
        texts: the text of every token id.
        settings: of the rules.
        shown, scored, fit_top, fit_random, fit_spread: which fragments are scored, and on how
            many others rules are fitted (`fragments.split`; all top and random ones that are not
            scored, unless told otherwise). `fit_top=5, fit_random=0` is what a language model sees.

    Raises:
        UserError: too few fragments.
    """
    settings = settings or RuleSettings()
    n = len(examples.features)
    numbers = {"fit_top": fit_top, "fit_random": fit_random, "fit_spread": fit_spread}
    blocks = []
    for low in range(0, max(n, 1), BLOCK):
        own = examples.of(torch.arange(low, min(low + BLOCK, n)))
        parts = split(own, shown=shown, scored=scored, **numbers)
        blocks.append(_explain(parts, texts, settings))
    kinds = [kind for block in blocks for kind in block.kinds]
    told = [text for block in blocks for text in block.texts]
    fitted, top, random = (
        torch.cat([getattr(block, name) for block in blocks])
        for name in ("fitted", "top", "random")
    )
    scores = Score(*(torch.cat(own) for own in zip(*(b.score for b in blocks), strict=True)))
    return Rules(kinds, told, fitted, top, random, scores)


def _explain(parts: Split, texts: Texts, settings: RuleSettings) -> Rules:
    """Rules of one block of features."""
    span = 1 + max((int(c.tokens.max()) for c in parts if c.tokens.numel()), default=0)
    grouped = _grouped(parts.fitted, settings, span)
    fitters = {kind: _fitter(kind, parts.fitted, settings, grouped) for kind in settings.kinds}
    known = present(parts.fitted).numpy()
    activations = parts.fitted.activations.double().numpy()
    measured = torch.stack(
        [_cross_validated(f, parts.fitted, known, settings.folds) for f in fitters.values()]
    )
    best, places = measured.nan_to_num(-1.0).max(0)
    kinds = [
        settings.kinds[place] if r > 0 else NONE
        for place, r in zip(places.tolist(), best.tolist(), strict=True)
    ]
    tables = {kind: fitters[kind].fit(known) for kind in set(kinds) - {NONE}}
    mean = (activations * known).sum((1, 2)) / known.sum((1, 2)).clip(min=1)
    top, random = (
        _foretold(contexts, kinds, mean, fitters, tables) for contexts in (parts.top, parts.random)
    )
    read = reader(texts)
    told = [
        fitters[kind].tell(tables[kind], feature, read) if kind != NONE else "no rule found"
        for feature, kind in enumerate(kinds)
    ]
    fitted = best.masked_fill(measured.isnan().all(0), math.nan)
    return Rules(kinds, told, fitted, top, random, score(parts, top, random))


@dataclass(frozen=True)
class _Fitter:
    """One kind of rule: what it looks at, how a table of it is fitted on some tokens, its text."""

    symbols: Callable[[Contexts], Ints]
    fit: Callable[[Bools], Table]
    tell: Callable[[Table, int, Callable[[int], str]], str]


def _grouped(fitted: Contexts, settings: RuleSettings, span: int) -> dict[bool, Groups]:
    """Tokens sorted by the token before (True) and by themselves (False), where a kind asks."""
    wanted = {kind == "previous" for kind in settings.kinds if kind != "position"}
    return {
        before: Groups.of(_previous(fitted, span) if before else _tokens(fitted), span + 1)
        for before in wanted
    }


def _fitter(
    kind: str, fitted: Contexts, settings: RuleSettings, grouped: dict[bool, Groups]
) -> _Fitter:
    """A kind of rule on the fragments of F features."""
    activations = fitted.activations.double().numpy()
    if kind == "position":
        return _Fitter(_positions, partial(profiles, activations), tell_position)
    size, shrink = (1, 0.0) if kind == "token" else (settings.size, settings.shrink)
    before = kind == "previous"
    groups = grouped[before]
    symbols = partial(_previous, first=groups.span - 1) if before else _tokens
    tell = tell_previous if before else tell_tokens
    return _Fitter(symbols, partial(fit, groups, activations, size=size, shrink=shrink), tell)


def _tokens(contexts: Contexts) -> Ints:
    return contexts.tokens.long().numpy()


def _previous(contexts: Contexts, first: int) -> Ints:
    """The token before; `first` before the first."""
    tokens = _tokens(contexts)
    return np.concatenate([np.full_like(tokens[..., :1], first), tokens[..., :-1]], -1)


def _positions(contexts: Contexts) -> Ints:
    shape = contexts.tokens.shape
    return np.broadcast_to(np.arange(shape[-1], dtype=np.int64), shape)


def _cross_validated(fitter: _Fitter, fitted: Contexts, known: Bools, folds: int) -> Tensor:
    """Correlation of what is foretold of fragments with what happened there, `[F]`.

    Fragments are dealt to the folds in turn; each fold is foretold from the others.
    """
    symbols = fitter.symbols(fitted)
    fold = np.arange(symbols.shape[1]) % folds
    foretold = np.zeros(symbols.shape)
    for number in range(folds):
        own = fold == number
        table = fitter.fit(known & ~own[:, None])
        foretold[:, own] = table.look_up(symbols[:, own])
    sides = (fitted.activations, torch.from_numpy(foretold), torch.from_numpy(known))
    return correlation(*(side.flatten(1) for side in sides))


def _foretold(
    contexts: Contexts,
    kinds: list[str],
    mean: Floats,
    fitters: dict[str, _Fitter],
    tables: dict[str, Table],
) -> Tensor:
    """What each feature's own kind foretells, float32 `[F, k, w]`; its mean where it has none."""
    out = np.broadcast_to(mean[:, None, None], contexts.tokens.shape).copy()
    for kind, table in tables.items():
        own = np.array([k == kind for k in kinds])
        out[own] = table.look_up(fitters[kind].symbols(contexts))[own]
    return torch.from_numpy(out).float()
