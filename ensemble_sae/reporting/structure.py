"""How dictionaries hang together: with each other, with themselves before, with the truth.

All of it is computed from the checkpoints, in time that grows with the square of a dictionary's
size. Where that would take too long for a page, it is left out and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ensemble_sae.analysis import histories, recovery
from ensemble_sae.analysis.neighbours import neighbours, pairs
from ensemble_sae.reporting.plain import plain
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

WORK = 2e13  # multiplications that a page may take, of each kind: a minute or two on a laptop
FOLLOWED = 8  # members whose features are followed through the checkpoints
TRUTH = ("mmcs", "mmcs_truth", "represented")


def beside(run: Run, notes: list[str]) -> pd.DataFrame | None:
    """`analysis.neighbours`, if members differ in size or seed alone and it is not too much."""
    configs = run.configurations
    found = [pair for kind in ("larger", "seed") for pair in pairs(run, kind)]
    work = sum(
        configs[a].n_dict * configs[b].n_dict * float(configs[a].d_activation) for a, b in found
    )
    if not found or not run.checkpoints:
        return None
    if work > WORK:
        notes.append(
            f"Neighbours: {len(found):,} pairs of dictionaries take too long for a page; "
            "ensemble_sae.analysis.neighbours(run) compares them."
        )
        return None
    return neighbours(run)


def compared(run: Run, notes: list[str]) -> pd.DataFrame | None:
    """`analysis.recovery` without its assignment, where the true features are known."""
    if not run.sweep.get("known") or not run.checkpoints:
        return None
    truths = {hook: run.truth(hook) for hook in run.members["hook"].unique()}
    work = sum(
        config.n_dict * len(truth.atoms) * float(config.d_activation)
        for config in run.configurations.values()
        if (truth := truths.get(config.hook)) is not None
    )
    if work > WORK:
        notes.append(
            "The truth is known; comparing with it takes too long for a page: "
            "ensemble_sae.analysis.recovery(run)."
        )
        return None
    return recovery(run)[list(TRUTH)]


def followed(run: Run, chosen: Sequence[int], notes: list[str]) -> dict[str, Any]:
    """Histories of some members' features: counts by step, and what they are counted against."""
    points, configs = run.checkpoints, run.configurations
    if len(points) < 2 or not chosen:
        return {}
    shown = list(chosen[:FOLLOWED])
    work = len(points) * sum(configs[m].n_dict ** 2 * float(configs[m].d_activation) for m in shown)
    if work > WORK:
        notes.append(
            "Feature histories take too long for a page: "
            "ensemble_sae.histories(run, members=[...]) follows features through checkpoints."
        )
        return {}
    found = histories(run, members=shown)
    of = {}
    for member, history in found.of.items():
        counts = history.counts.reset_index()
        of[str(member)] = {name: plain(counts[name].tolist()) for name in counts}
        of[str(member)]["features"] = history.cosine.shape[1]
    return {"reference": found.reference, "of": of}
