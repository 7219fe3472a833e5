"""How far the members of a run found the true features of synthetic rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.metrics.matching import MAX_PAIRS, hungarian, mmcs, representedness
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

REPRESENTED = 0.9


def recovery(run: Run, on_progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
    """One row per member whose rows' true features are known, by id.

    Columns: those of `against` for the member's dictionary.

    Raises:
        UserError: no member's rows have known features. CorruptFile: a checkpoint is damaged.
    """
    import pandas as pd

    truths = {hook: run.truth(hook) for hook in run.members["hook"].unique()}
    known = {hook: truth.atoms for hook, truth in truths.items() if truth is not None}
    chosen = run.members[run.members["hook"].isin(list(known))]
    if chosen.empty:
        raise UserError(
            "Nobody knows the true features of these rows.",
            where=str(run.path),
            found=f"hooks {', '.join(truths)}",
            allowed="rows that a synthetic recipe makes",
        )
    rows = {}
    for done, (member, hook) in enumerate(chosen["hook"].items(), 1):
        rows[member] = against(run.sae(int(str(member))).dictionary, known[hook])
        if on_progress is not None:
            on_progress(done, len(chosen))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("id")


def against(dictionary: Tensor, truth: Tensor) -> dict[str, Any]:
    """A dictionary `[n, d]` against true features `[G, d]`.

    * `mmcs`: mean over atoms of the largest cosine with a true feature; `mmcs_absolute`: of |cos|.
    * `mmcs_truth`: mean over true features of the largest cosine with an atom.
    * `represented`: share of the true features whose largest cosine is above 0.9.
    * `hungarian`: mean cosine of the best one-to-one assignment, of min(n, G) pairs; NaN where
      there are too many to choose from.
    """
    seen = representedness(truth, dictionary)
    return {
        "mmcs": mmcs(dictionary, truth),
        "mmcs_absolute": mmcs(dictionary, truth, absolute=True),
        "mmcs_truth": float(seen.nanmean()),
        "represented": float((seen > REPRESENTED).double().mean()),
        "hungarian": _assigned(dictionary, truth),
    }


def _assigned(dictionary: Tensor, truth: Tensor) -> float:
    few = len(dictionary) * len(truth) <= MAX_PAIRS
    return hungarian(dictionary, truth).mean if few else math.nan
