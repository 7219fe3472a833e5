"""Fill the model card's numbers: `python -m ensemble_sae.lm.model_card [docs/model_card.md]`.

Everything between the two markers of the card is written from the shipped `training.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ensemble_sae.errors import UserError
from ensemble_sae.files import read_json, write_atomically
from ensemble_sae.lm.load import EMBEDDED_FOLDER

BEGIN = "<!-- from training.json -->"
END = "<!-- end -->"


def numbers(training: dict[str, Any]) -> str:
    """Return the card's generated part, Markdown, of what training.json records."""
    corpus, versions, losses = training["corpus"], training["versions"], training["held_out"]
    rows = [("this model", "model"), ("bigram", "bigram"), ("unigram", "unigram")]
    table = [
        f"| {label} | {losses[key]['nats_per_token']:.3f} | {losses[key]['bits_per_byte']:.3f} |"
        for label, key in rows
    ]
    facts = [
        f"| parameters | {training['parameters']:,} |",
        f"| training documents | {corpus['documents']:,} ({corpus['bytes'] / 1e6:.1f} MB) |",
        f"| training tokens in the corpus | {corpus['tokens']:,} |",
        f"| tokens seen | {training['tokens_seen']:,} ({training['epochs']:.2f} epochs) |",
        f"| steps | {training['steps']:,} of {training['batch_contexts']} contexts of "
        f"{training['context']} tokens |",
        f"| time | {training['seconds'] / 60:.0f} minutes on {training['threads']} CPU cores |",
        f"| seed | {training['seed']} |",
        "| versions | " + ", ".join(f"{name} {v}" for name, v in versions.items()) + " |",
    ]
    return "\n".join(
        [
            "| | nats per token | bits per byte |",
            "|---|---|---|",
            *table,
            "",
            f"All three on the same {corpus['held_out_tokens']:,} tokens "
            f"({corpus['held_out_bytes']:,} bytes) of {corpus['held_out_documents']} documents "
            "that were held out.",
            "",
            "| | |",
            "|---|---|",
            *facts,
            "",
            "The command was",
            "",
            "```",
            training["command"],
            "```",
        ]
    )


def filled(card: str, training: dict[str, Any]) -> str:
    """Return the card with the part between its markers written anew.

    Raises:
        UserError: the card lacks the markers.
    """
    head, begin, rest = card.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError("The model card lacks its markers.", allowed=f"{BEGIN} ... {END}")
    return f"{head}{BEGIN}\n{numbers(training)}\n{END}{tail}"


def main(arguments: list[str]) -> None:
    """Rewrite the card in place."""
    path = Path(arguments[0] if arguments else "docs/model_card.md")
    if not path.is_file():
        raise UserError("There is no model card to fill.", where=str(path))
    card = filled(path.read_text(encoding="utf-8"), read_json(EMBEDDED_FOLDER / "training.json"))
    write_atomically(path, lambda temporary: temporary.write_text(card, encoding="utf-8"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
