"""What the page calls columns, in which unit they are, and how they are to be read."""

from __future__ import annotations

from typing import NamedTuple


class Word(NamedTuple):
    """A column of the members' table.

    Attributes:
        label: on axes and heads. reads: a sentence. log: whether its axis is logarithmic.
        percent: whether it is a share, shown in percent. better: "low", "high" or "".
    """

    label: str
    reads: str
    log: bool = False
    percent: bool = False
    better: str = ""


METRICS = {
    "fvu": Word(
        "FVU", "Fraction of variance unexplained, held-out rows; 0 is perfect.", better="low"
    ),
    "l0": Word("L0", "Active features per held-out row, mean.", log=True),
    "ce_recovered": Word(
        "CE recovered",
        "Share of the language model's cross-entropy that is kept, from zeros (0) to clean (1).",
        better="high",
    ),
    "ce": Word("CE", "Cross-entropy of the next token, nats.", better="low"),
    "kl": Word("KL", "Divergence from the model undisturbed, nats per token.", better="low"),
    "dead": Word(
        "dead", "Share of features that fire on no held-out row.", percent=True, better="low"
    ),
    "mmcs_truth": Word(
        "MMCS of the truth",
        "Mean over true features of the largest cosine with an atom.",
        better="high",
    ),
    "mmcs": Word(
        "MMCS with the truth",
        "Mean over atoms of the largest cosine with a true feature.",
        better="high",
    ),
    "represented": Word(
        "represented",
        "Share of true features with an atom of cosine above 0.9.",
        percent=True,
        better="high",
    ),
    "mmcs_larger": Word(
        "MMCS, next larger",
        "Mean over atoms of the largest cosine with an atom of the next larger dictionary.",
        better="high",
    ),
    "mmcs_seed": Word(
        "MMCS, other seeds",
        "Mean over atoms of the largest cosine with an atom from another seed.",
        better="high",
    ),
    "score": Word(
        "score of its features",
        "Mean over active features: correlation of what a rule foretells with what they do.",
        better="high",
    ),
    "ultra_low_density": Word(
        "ultra-low density", "Share of features that hardly ever fire.", percent=True
    ),
    "min_cosine": Word("smallest cosine", "Smallest cosine of two atoms."),
    "axis_share": Word("along axes", "Share of atoms along a single value.", percent=True),
    "penalty_factor": Word("penalty factor", "What a target L0 made of the penalty.", log=True),
}
AXES = {
    "dict_ratio": Word("ratio", "Features over the width of a row."),
    "n_dict": Word("features", "Features of the dictionary.", log=True),
    "l1": Word("l1", "Penalty on the code.", log=True),
    "l0_coefficient": Word("l0 coefficient", "Penalty on the count of active features.", log=True),
    "bias_decay": Word("bias decay", "Penalty on the length of the bias."),
    "lr": Word("lr", "Learning rate.", log=True),
    "k": Word("k", "Active features per row, by construction.", log=True),
    "signature": Word("signature", "The kind of autoencoder."),
    "hook": Word("hook", "Where in the language model rows come from."),
    "seed": Word("seed", "Of first directions."),
}


def word(name: str) -> Word:
    """What a column is called; its own name if nobody has said."""
    return METRICS.get(name) or AXES.get(name) or Word(name.replace("_", " "), "")
