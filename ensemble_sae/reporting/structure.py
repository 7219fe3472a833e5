"""How dictionaries hang together: with each other, with themselves before, with the truth.

All of it is computed from the checkpoints, in time that grows with the square of a dictionary's
size. Where that would take too long for a page, it is left out and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ensemble_sae.analysis import histories
from ensemble_sae.analysis.neighbours import neighbours, pairs
from ensemble_sae.analysis.recovery import REPRESENTED
from ensemble_sae.data.truth import Truth
from ensemble_sae.metrics.matching import by_frequency, mmcs, representedness
from ensemble_sae.reporting.plain import plain
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

WORK = 2e13  # multiplications that a page may take, of each kind: a minute or two on a laptop
FOLLOWED = 8  # members whose features are followed through the checkpoints


class Compared(NamedTuple):
    """What members found of the true features.

    Attributes:
        table: by member: `mmcs`, `mmcs_truth`, `represented`, as `analysis.recovery` has them.
        by_frequency: of the best member of each hook and size: groups of true features from the
            rarest on, `frequency` and the mean over the group of the largest `cosine` with an atom.
    """

    table: pd.DataFrame
    by_frequency: dict[str, dict[str, list[Any]]]


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


def compared(run: Run, notes: list[str]) -> Compared | None:
    """Members against the true features, where these are known."""
    if not run.sweep.get("known") or not run.checkpoints:
        return None
    truths = {hook: run.truth(hook) for hook in run.members["hook"].unique()}
    known = {hook: truth for hook, truth in truths.items() if truth is not None}
    work = sum(
        config.n_dict * len(known[config.hook].atoms) * float(config.d_activation)
        for config in run.configurations.values()
        if config.hook in known
    )
    if work > WORK:
        notes.append(
            "The truth is known; comparing with it takes too long for a page: "
            "ensemble_sae.analysis.recovery(run)."
        )
        return None
    return _compared(run, known)


def _compared(run: Run, known: dict[str, Truth]) -> Compared:
    import pandas as pd

    rows, seen = {}, {}
    for member, config in run.configurations.items():
        if config.hook not in known:
            continue
        atoms, truth = run.sae(member).dictionary, known[config.hook].atoms
        seen[member] = representedness(truth, atoms)
        rows[member] = {
            "mmcs": mmcs(atoms, truth),
            "mmcs_truth": float(seen[member].nanmean()),
            "represented": float((seen[member] > REPRESENTED).double().mean()),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    kinds = run.members.loc[table.index].groupby(["hook", "n_dict"]).groups.values()
    best = [int(table.loc[list(ids), "mmcs_truth"].idxmax()) for ids in kinds]
    groups = {}
    for member in sorted(best):
        found = by_frequency(seen[member], known[run.configurations[member].hook].frequency)
        groups[str(member)] = {
            "frequency": [plain((group.lowest * group.highest) ** 0.5) for group in found],
            "cosine": [plain(group.mean) for group in found],
        }
    return Compared(table, groups)


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
