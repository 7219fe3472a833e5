"""What the page's feature browser reads of one member, as small as it can be.

The texts of tokens are in one list, and contexts hold their places in it. Activations are whole
percents of the feature's largest; tokens on which it is silent are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.analysis.matched import nearest
from ensemble_sae.inspection.collecting import EDGES
from ensemble_sae.inspection.examples import Contexts
from ensemble_sae.inspection.feature import Features
from ensemble_sae.reporting.looking import Looked
from ensemble_sae.reporting.plain import plain, short

if TYPE_CHECKING:
    import pandas as pd

BEFORE, AFTER = 18, 8  # tokens of a context that are shown around the strongest
SHOWN = {"top": 8, "spread": 5}  # contexts of a feature
MANY, SHOWN_OF_MANY = 4096, {"top": 5, "spread": 3}  # of members with more features than that
NEIGHBOURS = 5
NEIGHBOUR_WORK = 5e12  # multiplications
NUMBERS = ("density", "mean", "max", "ablation_effect", "ablation_kl", "steering_kl")
LISTS = (
    *("promoted", "suppressed", "tuned_promoted", "tuned_suppressed"),
    *("lowered", "raised", "steers_to"),
)


def browsed(looked: Looked) -> dict[str, Any]:
    """One member's features.

    `call`: what gives them in Python; `numbers`: columns by name; `rule`, `score`: what a rule
    makes of each active one; `tokens`: columns of lists of places in `words`; `contexts`: by
    kind, per feature, a list of [fragment, strength, words, places, percents]; `histogram`: counts
    by size, between `edges`; `neighbours`: per feature, [feature, cosine] of the
    nearest in the same member.
    """
    features = looked.features
    words = _Words()
    table = features.table
    counts = SHOWN if len(features) <= MANY else SHOWN_OF_MANY
    found: dict[str, Any] = {
        "member": looked.member,
        "text": _text(features),
        "call": looked.call,
        "numbers": {name: plain(table[name].tolist()) for name in NUMBERS if name in table},
        "tokens": {
            name: [words.places(own) for own in table[name]] for name in LISTS if name in table
        },
        "contexts": {
            kind: _contexts(features, kind, count, words) for kind, count in counts.items()
        },
        "histogram": _histogram(features),
        "neighbours": _neighbours(features),
    }
    if "hangs_on" in table:
        found["hangs_on"] = table["hangs_on"].fillna("").tolist()
    if looked.rules is not None:
        found |= _ruled(looked.rules, len(features))
    return found | {"words": words.texts}


def _text(features: Features) -> dict[str, Any]:
    names = ("model", "dataset", "hook", "fragments", "width", "tokens")
    return {name: plain(features.settings[name]) for name in names if name in features.settings}


def _ruled(rules: pd.DataFrame, n: int) -> dict[str, Any]:
    every = rules.reindex(range(n))
    return {
        "rule": every["rule"].fillna("").tolist(),
        "score": plain(every["top_and_random"].tolist()),
    }


class _Words:
    """Texts, each once, in the order in which they were met."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]

    def places(self, texts: Any) -> list[int]:
        return [] if texts is None else [self.place(str(text)) for text in texts]


def _contexts(features: Features, kind: str, count: int, words: _Words) -> list[Any]:
    """Per feature, its first contexts of a kind; of "spread" some, from the weakest on."""
    examples, own = features.examples, getattr(features.examples, kind)
    strongest = own.activations.argmax(2)
    if kind == "spread" and examples.drawn is not None:
        strongest = examples.drawn
    strength = own.activations.gather(2, strongest[..., None])[..., 0]
    largest = torch.from_numpy(features.table["max"].to_numpy(copy=True)).float()
    text = {token: words.place(word) for token, word in features.vocabulary.items()}
    spread = kind == "spread"
    places = _evenly(own.fragments, count) if spread else _first(own.fragments, count)
    read = _Reader(own, _percents(own.activations, largest), strongest, strength, text)
    return [[read.context(n, place) for place in some] for n, some in enumerate(places)]


def _percents(activations: Tensor, largest: Tensor) -> Tensor:
    """Whole percents of each feature's largest, at least 1 where it is active: int16."""
    percents = (100 * activations / largest.clamp_min(1e-12)[:, None, None]).round()
    faint = (percents == 0) & (activations != 0)
    percents = torch.where(faint, activations.sign(), percents)
    return percents.clamp(-100, 100).to(torch.int16)


def _first(fragments: Tensor, count: int) -> list[list[int]]:
    """Places of the first of those that are there."""
    return [list(range(min(have, count))) for have in (fragments >= 0).sum(1).tolist()]


def _evenly(fragments: Tensor, count: int) -> list[list[int]]:
    """Places of those that are there, evenly from the first to the last."""
    found = []
    for have in (fragments >= 0).sum(1).tolist():
        some = min(have, count)
        found.append([round(i * (have - 1) / max(1, some - 1)) for i in range(some)])
    return found


class _Reader:
    """Contexts of one kind as lists: single numbers of tensors are slow to read."""

    def __init__(
        self,
        own: Contexts,
        percents: Tensor,
        strongest: Tensor,
        strength: Tensor,
        text: dict[int, int],
    ) -> None:
        self._tokens, self._fragments = own.tokens.numpy(), own.fragments.tolist()
        self._percents, self._text = percents.numpy(), text
        self._strongest, self._strength = strongest.tolist(), strength.tolist()

    def context(self, feature: int, place: int) -> list[Any]:
        """[fragment, strength, words, places, percents] around the strongest token."""
        strongest = self._strongest[feature][place]
        first, last = max(0, strongest - BEFORE), strongest + AFTER + 1
        values = self._percents[feature, place, first:last].tolist()
        active = [at for at, value in enumerate(values) if value]
        return [
            self._fragments[feature][place],
            short(self._strength[feature][place]),
            [self._text[token] for token in self._tokens[feature, place, first:last].tolist()],
            active,
            [values[at] for at in active],
        ]


def _histogram(features: Features) -> dict[str, Any] | None:
    """Counts by size, of the bins between the first and the last that any feature is in."""
    counts = features.histogram
    if counts is None:
        return None
    used = counts.sum(0).nonzero()[:, 0].tolist() or [0]
    low, high = used[0], used[-1] + 1
    return {"edges": plain(list(EDGES[low : high + 1])), "counts": counts[:, low:high].tolist()}


def _neighbours(features: Features) -> list[Any] | None:
    """The nearest features of the same member; None where finding them takes too long."""
    config = features.sae.config
    if config.n_dict**2 * float(config.d_activation) > NEIGHBOUR_WORK or config.n_dict < 2:
        return None
    table = nearest(features.sae, (), NEIGHBOURS)
    found: list[Any] = [[] for _ in range(len(features))]
    rows = zip(table["feature"], table["other"], table["cosine"], strict=True)
    for feature, other, cosine in rows:
        found[int(feature)].append([int(other), plain(float(cosine))])
    return found
