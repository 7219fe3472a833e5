"""What is known of every feature of one member: where it fires, what it writes, what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.analysis.matched import nearest
from ensemble_sae.errors import UserError
from ensemble_sae.inspection.examples import Contexts, Examples
from ensemble_sae.lm.texts import visible
from ensemble_sae.run.sae import Sae

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["top", "spread", "random"]
WINDOW = 12  # tokens on each side of the strongest that are shown in one line


class Context(NamedTuple):
    """One fragment of text and a feature on it.

    Attributes:
        fragment: its number in the text. tokens: as text, as it is. activations: on each.
        strongest: the place of the largest activation; of "spread", of the one that was drawn.
    """

    fragment: int
    tokens: list[str]
    activations: list[float]
    strongest: int

    def around(self) -> tuple[list[str], list[float]]:
        """Tokens about the strongest one, as text that fits on a line, and their activations."""
        near = slice(max(0, self.strongest - WINDOW), self.strongest + WINDOW + 1)
        return [visible(token) for token in self.tokens[near]], self.activations[near]

    def line(self, largest: float) -> str:
        """The text around the strongest token on one line; a token is [marked] where the feature
        reaches half of its largest.
        """
        return "".join(
            f"[{text}]" if largest > 0 and activation >= largest / 2 else text
            for text, activation in zip(*self.around(), strict=True)
        )


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one member, from one pass over text.

    `features[17]` is one of them; `table` has them all.

    Attributes:
        sae: the member. settings: model, text and fragments that this is from.
        table: a DataFrame indexed by feature. `density`: share of tokens on which it is active;
            `mean`: of its code there; `max`: the largest; `promoted`, `suppressed`: tokens by the
            logit lens, where the member writes into the residual stream; `tuned_promoted`,
            `tuned_suppressed`: by a tuned lens, where one was given. After
            `effects`: `ablation_effect`, `ablation_kl`, `lowered`, `raised`, `steering_kl`,
            `steers_to`, and `hangs_on`: the token whose removal costs the feature most.
        examples: fragments on which each feature was seen.
        dropped: the change of a feature's activation without one of the 16 tokens before its
            strongest, `[n, 16]`; None before `effects`.
        histogram: activations of each feature by size, int32 `[n, bins]`: see `collecting.EDGES`;
            None in what older versions kept.
    """

    sae: Sae
    settings: dict[str, Any]
    table: pd.DataFrame
    examples: Examples
    vocabulary: dict[int, str] = field(repr=False)
    dropped: Tensor | None = None
    histogram: Tensor | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, feature: int) -> Feature:
        if not isinstance(feature, int) or not 0 <= feature < len(self):
            raise UserError(
                "There is no such feature.",
                where=repr(self.sae),
                found=repr(feature),
                allowed=f"0 to {len(self) - 1}",
            )
        return Feature(self, feature)

    def __iter__(self) -> Iterator[Feature]:
        return (Feature(self, feature) for feature in range(len(self)))

    @property
    def alive(self) -> Tensor:
        """Features that were active at least once, int64."""
        return torch.from_numpy((self.table["density"] > 0).to_numpy().copy()).nonzero()[:, 0]

    def nearest(self, others: Sequence[Sae] | Mapping[str, Sae] = (), k: int = 5) -> pd.DataFrame:
        """The k nearest features of each, in this member and in others, of other layers too: see
        `analysis.nearest`.
        """
        return nearest(self.sae, others, k)

    def __repr__(self) -> str:
        seen = f"{len(self.alive)} of {len(self)} active"
        return f"Features({self.sae!r}, {seen} on {self.settings['tokens']:,} tokens)"

    def _repr_html_(self) -> str:
        from ensemble_sae.inspection.cards import features_card

        return features_card(self)


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature: `print(features[17])` shows it."""

    features: Features = field(repr=False)
    index: int

    @property
    def row(self) -> dict[str, Any]:
        """Its row of the table."""
        row = self.features.table.loc[self.index]
        return {str(name): value for name, value in row.items()}

    def contexts(self, kind: Kind = "top") -> list[Context]:
        """Fragments on which it was seen.

        Args:
            kind: "top", the strongest first; "spread", drawn from all of its activations, evenly
                from the weakest to the strongest; "random", from all of the text.
        """
        if kind not in ("top", "spread", "random"):
            raise UserError("Which contexts?", found=repr(kind), allowed="top, spread, random")
        own: Contexts = getattr(self.features.examples, kind)
        words = self.features.vocabulary
        found = []
        for place, fragment in enumerate(own.fragments[self.index].tolist()):
            if fragment < 0:
                continue
            activations = own.activations[self.index, place]
            tokens = [words[token] for token in own.tokens[self.index, place].tolist()]
            strongest = int(activations.argmax())
            if kind == "spread" and self.features.examples.drawn is not None:
                strongest = int(self.features.examples.drawn[self.index, place])
            found.append(Context(fragment, tokens, activations.tolist(), strongest))
        return found

    def __str__(self) -> str:
        row = self.row
        lines = [
            f"feature {self.index} of {self.features.sae!r}",
            f"  active on {100 * row['density']:.3g}% of tokens, mean {row['mean']:.3g}, "
            f"largest {row['max']:.3g}",
        ]
        for title, tokens in token_lists(row):
            lines.append(f"  {title}: " + " ".join(f"`{token}`" for token in tokens))
        lines += [f"  {text}" for text in effects_told(row)]
        for kind, title in (("top", "strongest"), ("spread", "from its weakest to its strongest")):
            lines.append(f"  {title}:")
            for context in self.contexts(kind)[:5]:  # type: ignore[arg-type]
                strength = context.activations[context.strongest]
                lines.append(f"    {strength:8.3g}  {context.line(row['max'])}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from ensemble_sae.inspection.cards import feature_card

        return feature_card(self)


def token_lists(row: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Of a feature's row, the lists of tokens that are not empty, each with its title."""
    lists = {
        "promoted": "promotes",
        "suppressed": "suppresses",
        "tuned_promoted": "promotes (tuned lens)",
        "tuned_suppressed": "suppresses (tuned lens)",
        "lowered": "without it less likely",
        "raised": "without it more likely",
        "steers_to": "added everywhere, more likely",
    }
    for name, title in lists.items():
        if row.get(name) is not None and len(row[name]):
            yield title, [visible(token) for token in row[name]]


def effects_told(row: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a feature's effects, a line for each."""
    if "ablation_effect" in row and row["ablation_effect"] == row["ablation_effect"]:
        yield (
            f"without it: log-probability of the next token {row['ablation_effect']:+.3f}, "
            f"KL {row['ablation_kl']:.3f} nats"
        )
    if row.get("hangs_on"):
        yield f"hangs on: {row['hangs_on']}"
