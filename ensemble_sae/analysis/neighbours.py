"""Members against those beside them in the sweep: the next larger dictionary, another seed.

A feature that several dictionaries found is more likely one of the model than of the training.
Source: Sharkey et al. 2022, "Taking features out of superposition with sparse autoencoders".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from ensemble_sae.metrics.matching import mmcs
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["larger", "seed"]
# What tells two members apart that differ in size, or in seed, alone.
_BESIDE: dict[Kind, tuple[str, ...]] = {"larger": ("n_dict", "dict_ratio"), "seed": ("seed",)}


def neighbours(run: Run) -> pd.DataFrame:
    """Pairs of members that differ in one thing, and how much of one is in the other.

    Columns: `member`, `other`, `kind` and `mmcs`, the mean over the member's atoms of the largest
    cosine with an atom of the other. Kind "larger": the other is the next larger dictionary of the
    same configuration. Kind "seed": the same configuration from another seed; each pair is there in
    both directions.

    Raises:
        CorruptFile: a checkpoint is damaged.
    """
    import pandas as pd

    found = [(*pair, kind) for kind in _BESIDE for pair in pairs(run, kind)]
    atoms = {m: run.sae(m).dictionary for m in {m for one, other, _ in found for m in (one, other)}}
    rows = [
        {"member": one, "other": other, "kind": kind, "mmcs": mmcs(atoms[one], atoms[other])}
        for one, other, kind in found
    ]
    return pd.DataFrame(rows, columns=["member", "other", "kind", "mmcs"])


def pairs(run: Run, kind: Kind) -> Iterator[tuple[int, int]]:
    """(member, other) that differ in size alone, the next larger, or in seed alone: see above."""
    families: dict[str, list[int]] = {}
    configs = run.configurations
    for member, config in configs.items():
        row = config.as_row()
        rest = {k: v for k, v in row.items() if k not in ("id", "name", *_BESIDE[kind])}
        families.setdefault(json.dumps(rest, sort_keys=True), []).append(member)
    for family in families.values():
        if kind == "larger":
            by_size = sorted(family, key=lambda member: (configs[member].n_dict, member))
            yield from pairwise(by_size)
        else:
            yield from ((a, b) for a in family for b in family if a != b)
