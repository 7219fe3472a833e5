"""The pass that finds out about features, and what is added to it: lenses, effects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.data.hooks import Hook
from ensemble_sae.errors import UserError
from ensemble_sae.inspection import effects as measure
from ensemble_sae.inspection.collecting import Collector
from ensemble_sae.inspection.directions import directions
from ensemble_sae.inspection.examples import Examples
from ensemble_sae.inspection.feature import Features
from ensemble_sae.inspection.lens import is_written, logit_lens, stream_of
from ensemble_sae.inspection.tuned_lens import TunedLens
from ensemble_sae.lm.members import check_fits, joined
from ensemble_sae.lm.splice import Forward
from ensemble_sae.lm.text import Text
from ensemble_sae.run.sae import Sae

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

CODES = 2**22  # numbers of a batch's code
SHOWN = 8  # tokens of a lens
STEERED = 4  # fragments on which steering is measured

OnProgress = Callable[[str, int, int], None]


@torch.no_grad()
def look(
    bridge: TransformerBridge,
    sae: Sae,
    text: Text,
    recipe: Recipe,
    *,
    tuned: TunedLens | None = None,
    hook: str | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Features:
    """Find out about all features of an autoencoder in one pass over fragments of text.

    Args:
        text: fragments, all of one width.
        recipe: what they are from, for the record.
        tuned: a lens for the point that the autoencoder writes, beside the logit lens.
        hook: where the autoencoder is, if it names no hook itself (a baseline).
    """
    place = check_fits(bridge, sae, hook)
    if tuned is not None:
        tuned.check(bridge, stream_of(place.measured[0]))
    collector = Collector(text.tokens, sae.config.n_dict, seed=recipe.seed, device=sae.device)
    size = max(1, CODES // (text.tokens.shape[1] * sae.config.n_dict))
    for start in range(0, len(text.tokens), size):
        part = text.part(start, start + size)
        values = Forward(bridge, part.tokens, place.points, logits=False).values
        code = sae.encode(joined(place.inputs, values).to(sae.device))
        collector.add(start, code, part.is_read.to(code.device))
        on_progress("reading", min(start + size, len(text.tokens)), len(text.tokens))
    table, written = _table(collector), _written(bridge, sae, place)
    vocabulary = _Vocabulary(bridge.tokenizer)
    if written is not None:
        lenses = {"": logit_lens(bridge, written, SHOWN)}
        if tuned is not None:
            lenses["tuned_"] = tuned.logit_lens(
                bridge, written, stream_of(place.measured[0]), SHOWN
            )
        for prefix, found in lenses.items():
            table[f"{prefix}promoted"] = found.promoted.tokens
            table[f"{prefix}suppressed"] = found.suppressed.tokens
    examples = collector.examples()
    words = vocabulary.of_examples(examples)
    settings = _settings(recipe, place, text)
    return Features(sae, settings, table, examples, words, histogram=collector.histogram)


def with_effects(
    bridge: TransformerBridge,
    features: Features,
    *,
    fragments: int = 5,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Features:
    """Add what each feature does to the model: ablated, steered along, and what it hangs on.

    Ablation and dropping are measured on a feature's strongest fragments, steering by adding its
    largest activation to every token of four fragments. Only where it reads and writes one point.

    Args:
        fragments: of each feature, that it is ablated on.
    """
    sae, examples = features.sae, features.examples
    place = Hook.parse(features.settings["hook"])
    reads, writes = _single(place)
    v = directions(sae).cpu()
    strengths = torch.from_numpy(features.table["max"].to_numpy(copy=True)).float()
    steered_on = examples.random.tokens[:STEERED, 0].long()

    def telling(what: str) -> Callable[[int, int], None]:
        return lambda done, total: on_progress(what, done, total)

    ablated = measure.ablation(
        bridge, writes, v, examples, fragments=fragments, on_progress=telling("ablating")
    )
    steered = measure.steering(
        bridge, writes, v, strengths, steered_on, on_progress=telling("steering")
    )
    dropped = measure.dropping(bridge, sae, reads, examples, on_progress=telling("dropping"))
    vocabulary = _Vocabulary(bridge.tokenizer)
    table = features.table.copy()
    table["ablation_effect"], table["ablation_kl"] = ablated.effect.numpy(), ablated.kl.numpy()
    table["lowered"] = vocabulary.lists(ablated.lowered, ~ablated.kl.isnan())
    table["raised"] = vocabulary.lists(ablated.raised, ~ablated.kl.isnan())
    table["steering_kl"] = steered.kl.numpy()
    table["steers_to"] = vocabulary.lists(steered.raised, strengths > 0)
    table["hangs_on"] = _hangs_on(features, dropped)
    return replace(features, table=table, dropped=dropped)


def _table(collector: Collector) -> pd.DataFrame:
    import pandas as pd

    columns = {
        "density": collector.density.numpy(),
        "mean": collector.strength.numpy(),
        "max": collector.largest.numpy(),
    }
    return pd.DataFrame(columns).rename_axis("feature")


def _written(bridge: TransformerBridge, sae: Sae, place: Hook) -> Tensor | None:
    """What features add to the residual stream; None where they write elsewhere."""
    if len(place.measured) > 1 or not is_written(place.measured[0]):
        return None
    return directions(sae)


def _single(place: Hook) -> tuple[str, str]:
    if len(place.inputs) > 1 or len(place.measured) > 1:
        raise UserError(
            "Effects are measured of autoencoders that read one hook point and write one.",
            found=place.name,
            allowed="A, or A -> B",
        )
    return place.inputs[0], place.measured[0]


def _hangs_on(features: Features, dropped: Tensor) -> list[str]:
    """The token before the strongest whose removal costs a feature most, and how much."""
    top, words = features.examples.top, features.vocabulary
    told = []
    for feature, changes in enumerate(dropped):
        back = len(changes) - int(changes.nan_to_num(0).argmin())
        change = float(changes[len(changes) - back])
        place = int(top.activations[feature, 0].argmax()) - back
        if not change < -0.1 or place < 1:
            told.append("")
            continue
        token = words[int(top.tokens[feature, 0, place])]
        told.append(f"{token!r} {back} before: {100 * change:+.0f}%")
    return told


def _settings(recipe: Recipe, place: Hook, text: Text) -> dict[str, Any]:
    about = {name: getattr(recipe, name) for name in ("model", "dataset", "seed")}
    fragments, width = text.tokens.shape
    tokens = int(text.is_read.sum())
    return {**about, "hook": place.name, "fragments": fragments, "width": width, "tokens": tokens}


class _Vocabulary:
    """Texts of token ids, each decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._tokenizer.decode([token])
        return self._known[token]

    def of_examples(self, examples: Examples) -> dict[int, str]:
        """Of every token that an example has."""
        kinds = (examples.top, examples.spread, examples.random)
        tokens = torch.cat([kind.tokens.flatten().unique() for kind in kinds]).unique()
        return {token: self.of(token) for token in tokens.tolist()}

    def lists(self, tokens: Tensor, known: Tensor) -> list[list[str]]:
        """Of ids `[n, k]`; an empty list where nothing is known."""
        rows = zip(tokens.tolist(), known.tolist(), strict=True)
        return [[self.of(token) for token in row] if there else [] for row, there in rows]
