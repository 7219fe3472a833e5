"""What features look like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ensemble_sae.inspection.feature import effects_told, token_lists
from ensemble_sae.lm.texts import visible
from ensemble_sae.pages import notebook as html

if TYPE_CHECKING:
    from ensemble_sae.inspection.feature import Context, Feature, Features

FEATURES, CONTEXTS, TOKENS = 8, 5, 4  # that a card shows


def feature_card(feature: Feature) -> str:
    """How often it fires, which tokens it promotes, what it does, and where: shaded texts."""
    row, sae = feature.row, feature.features.sae
    told = {
        "active on": f"{100 * row['density']:.3g}% of tokens",
        "activation": f"mean {row['mean']:.3g} where active, largest {row['max']:.3g}",
    }
    effects = {text.partition(": ")[0]: text.partition(": ")[2] for text in effects_told(row)}
    lists = [html.words(title, tokens) for title, tokens in token_lists(row)]
    texts = []
    for kind, title in (
        ("top", "Where it is strongest:"),
        ("spread", "Drawn from all of its activations, from the weakest to the strongest:"),
    ):
        found = feature.contexts(kind)  # type: ignore[arg-type]
        found = html.sampled(found, CONTEXTS) if kind == "spread" else found[:CONTEXTS]
        lines = [(c.activations[c.strongest], _shaded(c, row["max"])) for c in found]
        texts.append(html.contexts(title, lines))
    about = f"of member {sae.config.id}, {sae.config.name}"
    title = f"Feature {feature.index}"
    return html.card(title, about, html.facts(told | effects), "<br>".join(lists), *texts)


def features_card(features: Features) -> str:
    """The text, how many fire, and some of them from the densest to the rarest."""
    table, settings = features.table, features.settings
    about = f"of member {features.sae.config.id}, {features.sae.config.name}"
    alive = table[table["density"] > 0].sort_values("density", ascending=False)
    told = {
        "active": f"{len(alive)} of {len(table)}",
        "on": f"{settings['tokens']:,} tokens of {settings.get('dataset', 'text')} in "
        f"{settings['fragments']:,} fragments",
    }
    some = html.sampled(alive, FEATURES)
    shown = some[["density", "max"]].rename(columns={"max": "largest"})
    if "promoted" in some:
        few = [[visible(t) for t in tokens[:TOKENS]] for tokens in some["promoted"]]
        shown["promotes"] = few
    if "ablation_kl" in some:
        shown["without it, KL"] = some["ablation_kl"]
    shown["strongest in"] = [_strongest(features[int(i)]) for i in some.index]
    formats = {"density": "{:.2%}", "largest": "{:.3g}", "without it, KL": "{:.3f}"}
    caption = "" if len(some) == 0 else f"{len(some)} from the densest to the rarest:"
    first = int(some.index[len(some) // 2]) if len(some) else 0
    return html.card(
        "Features",
        about,
        html.facts(told),
        html.table(shown, formats, caption),
        html.python(
            "features.table", f"features[{first}]", f'features[{first}].contexts("spread")'
        ),
    )


def _shaded(context: Context, largest: float) -> str:
    return html.shaded_tokens(*context.around(), largest)


def _strongest(feature: Feature) -> str:
    """The strongest token of all with two before it, that token marked."""
    found = feature.contexts("top")
    if not found:
        return ""
    place = found[0].strongest
    before = "".join(visible(t) for t in found[0].tokens[max(0, place - 2) : place])
    return f"{before}[{visible(found[0].tokens[place])}]"
