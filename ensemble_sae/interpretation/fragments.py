"""Which fragments explain a feature and which score the explanation; none does both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.inspection.examples import Contexts, Examples


class Split(NamedTuple):
    """The fragments of F features, apart. Where there are too few, a fragment is -1.

    Attributes:
        shown: what an explainer that reads sees, `[F, shown, w]`.
        fitted: what rules are fitted on: fragments that are not scored, each once.
        top: scored fragments with large activations, `[F, scored, w]`.
        random: scored fragments from all of the text, `[F, scored, w]`.
    """

    shown: Contexts
    fitted: Contexts
    top: Contexts
    random: Contexts


def split(
    examples: Examples,
    *,
    shown: int = 5,
    scored: int = 5,
    fit_top: int | None = None,
    fit_random: int | None = None,
    fit_spread: int | None = 0,
) -> Split:
    """Take the fragments of every feature apart, as published.

    Of 20 top fragments the 1st, 5th, 9th, ... are shown and the 3rd, 7th, 11th, ... are scored
    (Bills et al. 2023 deal them to four hands in turn: train, calibration, validation, test; the
    first and the third are used). Scored at random are the first of `examples.random` that are
    not among those.

    Args:
        examples: of F features; at least `2 * max(shown, scored)` top and `scored` random ones.
        shown: how many top fragments are shown.
        scored: how many top and how many random fragments are scored.
        fit_top, fit_random, fit_spread: how many others rules are fitted on at most, those shown
            first; None is all of them.

    Raises:
        UserError: too few fragments.
    """
    n_top, n_random = examples.top.fragments.shape[1], examples.random.fragments.shape[1]
    stride = n_top // max(shown, scored, 1)
    if min(shown, scored) < 1 or stride < 2 or n_random < scored:
        raise UserError(
            "There are too few fragments to explain features and to score the explanations.",
            found=f"{n_top} top and {n_random} random fragments; {shown} shown, {scored} scored",
            allowed="at least one shown and scored, top fragments for twice as many as the more "
            "numerous of them, random ones for all that are scored",
        )
    to_show = torch.arange(shown) * stride
    to_score = torch.arange(scored) * stride + stride // 2
    seen, top = _take(examples.top, to_show), _take(examples.top, to_score)
    used = torch.cat([seen.fragments, top.fragments], 1)
    bad = _among(examples.random.fragments, used) | (examples.random.fragments < 0)
    order = bad.to(torch.int8).argsort(dim=1, stable=True)
    random = _take(_without(examples.random, bad), order[:, :scored])
    left = torch.ones(n_top, dtype=torch.bool)
    left[to_show], left[to_score] = False, False
    places = torch.cat([to_show, left.nonzero()[:, 0]])[:fit_top]
    parts = [
        _take(examples.top, places),
        _take(examples.random, order[:, scored:][:, :fit_random]),
        _take(examples.spread, torch.arange(examples.spread.fragments.shape[1])[:fit_spread]),
    ]
    fitted = Contexts(*(torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)))
    scored_ones = torch.cat([top.fragments, random.fragments], 1)
    again = _among(fitted.fragments, scored_ones) | _seen_before(fitted.fragments)
    return Split(seen, _without(fitted, again), top, random)


def present(contexts: Contexts) -> Tensor:
    """Where there is a token: bool `[F, k, w]`."""
    return (contexts.fragments >= 0)[..., None].expand(contexts.tokens.shape)


def _take(contexts: Contexts, places: Tensor) -> Contexts:
    """Some fragments of every feature: the same places `[k]`, or those of each, `[F, k]`."""
    if places.ndim == 1:
        return Contexts(*(values[:, places] for values in contexts))
    rows = torch.arange(len(places))[:, None]
    return Contexts(*(values[rows, places] for values in contexts))


def _without(contexts: Contexts, bad: Tensor) -> Contexts:
    return contexts._replace(fragments=contexts.fragments.masked_fill(bad, -1))


def _among(fragments: Tensor, others: Tensor) -> Tensor:
    """Which of a feature's fragments `[F, k]` are among its others `[F, m]`: bool `[F, k]`."""
    return (fragments[:, :, None] == others[:, None, :]).any(2)


def _seen_before(fragments: Tensor) -> Tensor:
    """Which fragments stand further left, too: bool `[F, k]`."""
    same = fragments[:, :, None] == fragments[:, None, :]
    return same.tril(-1).any(2)
