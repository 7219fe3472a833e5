"""The dictionaries that are compared: members of a run, and baselines at the same hook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.baselines import fit
from ensemble_sae.data.hooks import Hook
from ensemble_sae.inspection.feature import Features
from ensemble_sae.inspection.looking import OnProgress, look
from ensemble_sae.inspection.request import Desk
from ensemble_sae.lm.members import joined
from ensemble_sae.lm.splice import Forward
from ensemble_sae.randomness import permutation
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

BESIDE = ("neuron_basis", "rectified_basis", "random", "pca", "ica")
FITTED_ON = 16_384  # rows
CHOSEN = 5  # members, where none is named
FRAGMENTS_AT_ONCE = 64


def default_members(run: Run) -> list[int]:
    """Some of the Pareto-best, evenly from the sparsest to the densest; else the first members."""
    table: pd.DataFrame = run.members
    best = table[table["pareto"]].sort_values("l0") if "pareto" in table else table
    best = best if len(best) else table
    places = torch.linspace(0, len(best) - 1, min(CHOSEN, len(best))).round().long().unique()
    return [int(best.index[place]) for place in places.tolist()]


def of_members(
    desk: Desk, members: Sequence[int], effects: bool, on_progress: OnProgress
) -> Iterator[tuple[str, Features]]:
    """(name, features) of each member, from the run's folder where they are known."""
    for member in members:
        own = named(f"member {member}", on_progress)
        found = desk.features(member, effects=effects, on_progress=own)
        yield f"{member}: {found.sae.config.name}", found


def of_baselines(
    desk: Desk, hook: str, names: Sequence[str], on_progress: OnProgress
) -> Iterator[tuple[str, Features]]:
    """(name, features) of each baseline, fitted on rows of the hook, with d atoms or fewer.

    Raises:
        UserError: an unknown baseline.
    """
    place = Hook.parse(hook)
    rows = _rows(desk, place)
    for name in names:
        sae = fit(name, rows, rows.shape[1], seed=desk.recipe.seed)
        inputs, own = " + ".join(place.inputs), named(name, on_progress)
        yield name, look(desk.bridge, sae, desk.text, desk.recipe, hook=inputs, on_progress=own)


def named(name: str, on_progress: OnProgress) -> OnProgress:
    """Progress that says whose it is."""
    return lambda what, done, total: on_progress(f"{name}: {what}", done, total)


def sample(features: Features, count: int, seed: int) -> Tensor:
    """So many of the features that were active at least once, drawn at random; ascending."""
    alive = features.alive
    chosen = permutation(len(alive), seed, "interpreted", features.sae.config.id)[:count]
    return alive[chosen].sort().values


def _rows(desk: Desk, place: Hook) -> Tensor:
    """Rows of the hook on the first fragments, as many as baselines are fitted on."""
    found: list[Tensor] = []
    count = 0
    for start in range(0, len(desk.text.tokens), FRAGMENTS_AT_ONCE):
        part: Any = desk.text.part(start, start + FRAGMENTS_AT_ONCE)
        values = Forward(desk.bridge, part.tokens, place.inputs, logits=False).values
        rows = joined(place.inputs, values)
        found.append(rows[part.is_read.to(rows.device)].float())
        count += len(found[-1])
        if count >= FITTED_ON:
            break
    return torch.cat(found)[:FITTED_ON]
