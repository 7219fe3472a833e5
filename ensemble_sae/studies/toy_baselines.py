"""The baselines' table of the study on synthetic rows, published values beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ensemble_sae.analysis.recovery import against
from ensemble_sae.baselines import BASELINES, fit
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError
from ensemble_sae.files import read_json, write_json
from ensemble_sae.pages.page import plain
from ensemble_sae.run import Sae
from ensemble_sae.studies.steps import Tell

ROWS, FEW_ROWS = 102_400, 4_096
HELD_OUT = 4_096
# What takes too long on many rows.
AT_MOST = {
    "ica": 20_480,
    "kmedoids": 4_096,
    "ksvd_omp": 8_192,
    "ksvd_nonnegative": 8_192,
    "nmf": 20_480,
}
# What a smaller version leaves out.
LESS: dict[str, dict[str, Any]] = {"rica": {"steps": 200}}
# What takes minutes with the baseline's own settings at 512 atoms.
OPTIONS: dict[str, dict[str, Any]] = {
    "sparse_pca": {"max_iter": 2, "max_rows": 500},
    "ksvd_omp": {"iterations": 10},
    "ksvd_nonnegative": {"iterations": 10},
}
# Settings beside a baseline's own: the published ones are not stated, and these are closer.
ALSO = {"ica, unmixing": ("ica", {"which": "unmixing"})}
PUBLISHED = {  # MMCS, uncorrelated and correlated
    "kmeans": (0.56, 0.59),
    "kmedoids": (0.21, 0.45),
    "pca": (0.17, 0.18),
    "ica, unmixing": (0.17, 0.19),
}
HOOKS = ("uncorrelated", "correlated")
_TWO = dict.fromkeys(("MMCS", "MMCS of the truth", "published", "FVU"), "{:.2f}")
FORMATS = {**_TWO, "L0": "{:.1f}", "seconds": "{:.1f}", "rows": "{:,.0f}", "atoms": "{:,.0f}"}


def fitted(stores: Mapping[str, ChunkStore], quick: bool, path: Path, tell: Tell) -> pd.DataFrame:
    """All baselines on the rows of each store, with as many atoms as there are true features.

    Args:
        path: a file of what was fitted before, which is not fitted again.
    """
    wanted = [(name, name, OPTIONS.get(name, {})) for name in BASELINES]
    wanted += [(label, *of) for label, of in ALSO.items()]
    known: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    before = {(row["baseline"], row["data set"]) for row in known}
    tell(len(known), len(wanted) * len(stores))
    for hook, store in stores.items():
        if all((label, hook) in before for label, *_ in wanted):
            continue
        rows, held_out = _rows(store, FEW_ROWS if quick else ROWS), _held_out(store)
        truth = store.truth
        assert truth is not None  # the study's rows are synthetic
        for label, name, options in wanted:
            if (label, hook) not in before:
                less = LESS.get(name, {}) if quick else {}
                most = AT_MOST.get(name, len(rows))
                row = {"baseline": label, "data set": hook}
                given = truth.atoms, held_out, {**options, **less}
                known.append(row | _fitted(name, rows[:most], *given))
                write_json(path, plain(known))
            tell(len(known), len(wanted) * len(stores))
    table = pd.DataFrame(known)
    pairs = zip(table["baseline"], table["data set"], strict=True)
    table["published"] = [_published(*pair) for pair in pairs]
    return table


def _fitted(
    name: str, rows: Tensor, truth: Tensor, held_out: Tensor, options: dict[str, Any]
) -> dict[str, Any]:
    """What is measured of a baseline; nothing but the reason where it refuses these rows."""
    began = time.perf_counter()
    try:
        sae = fit(name, rows, len(truth), **options)
    except UserError as error:
        return {"refused": error.what}
    took = time.perf_counter() - began
    seen = min(len(rows), options.get("max_rows", len(rows)))
    about = {"rows": seen, "atoms": len(sae.dictionary)}
    return {**about, **_measured(sae, truth, held_out), "seconds": took}


def _measured(sae: Sae, truth: Tensor, rows: Tensor) -> dict[str, Any]:
    known = against(sae.dictionary, truth)
    code = sae.encode(rows)
    error = (sae.decode(code) - rows).square().sum()
    return {
        "MMCS": known["mmcs"],
        "MMCS of the truth": known["mmcs_truth"],
        "FVU": float(error / (rows - rows.mean(0)).square().sum()),
        "L0": float((code != 0).sum(1).float().mean()),
    }


def _published(name: str, hook: str) -> float:
    known = PUBLISHED.get(name)
    return known[HOOKS.index(hook)] if known and hook in HOOKS else torch.nan


def _held_out(store: ChunkStore) -> Tensor:
    return store.activations(store.chunks(held_out=True)[0].index)[:HELD_OUT].float()


def _rows(store: ChunkStore, count: int) -> Tensor:
    """The first training rows, as many as are wanted or there are in the first chunks."""
    taken: list[Tensor] = []
    for chunk in store.chunks():
        if sum(map(len, taken)) >= count:
            break
        taken.append(store.activations(chunk.index).float())
    return torch.cat(taken)[:count]
