"""The card of an exported member: README.md, as the Hugging Face hub shows it."""

from __future__ import annotations

import json
from importlib.metadata import version

from ensemble_sae.interop.about import About
from ensemble_sae.interop.kinds import kind_of
from ensemble_sae.run.sae import Sae

LIBRARIES = {"saelens": "saelens"}  # that the hub knows by name


def card(folded: Sae, about: About, to: str, load: str) -> str:
    """What it is, of what, how good, how to load it.

    Args:
        load: the Python lines that load it.
    """
    n, d = folded.params["decoder"].shape
    head = {
        "library_name": LIBRARIES.get(to, "ensemble-sae"),
        "tags": ["sparse-autoencoder", "interpretability", kind_of(folded)],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [
        f"# {about.text or 'Sparse autoencoder'}",
        "",
        f"A sparse autoencoder of {n:,} features on activations of width {d:,}, trained by "
        f"ensemble-sae {version('ensemble-sae')}. Rows are those of the model: centring, scaling "
        "and tying are in the weights. A feature's code is the length of what it adds to the "
        "activations.",
        "",
        "| | |",
        "|---|---|",
    ]
    known = {
        "hook": about.hook,
        "model": about.model,
        "text": about.dataset,
        "context": about.context,
        "kind": kind_of(folded),
        **{name: f"{value:.4g}" for name, value in about.results.items()},
    }
    lines += [f"| {name} | {_plain(value)} |" for name, value in known.items() if value]
    lines += ["", "```python", load, "```", "", "Configuration:", "", "```json"]
    lines += [json.dumps(about.member, indent=1), "```", ""]
    return "\n".join(lines)


def _plain(value: object) -> str:
    """Without what would break a table's row."""
    return str(value).replace("|", "\\|").replace("\n", " ")
