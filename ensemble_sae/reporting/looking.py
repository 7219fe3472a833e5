"""Members whose features the page shows: looked at now, or found where they were looked at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_sae.errors import UserError
from ensemble_sae.files import write_atomically
from ensemble_sae.inspection import files
from ensemble_sae.inspection.feature import Features
from ensemble_sae.inspection.looking import OnProgress
from ensemble_sae.inspection.request import Desk
from ensemble_sae.interpretation.comparison import by_rules, frame
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

RULES = "rules.parquet"
LEAST = 40  # fragments: 20 with the largest activations, 20 at random


@dataclass(frozen=True)
class Looked:
    """One member that was looked at.

    Attributes:
        features: what was found of them. rules: a row for each active one: `rule`, `kind`, and
            the scores `top`, `random`, `top_and_random`; None where the text was too short.
    """

    member: int
    features: Features
    rules: pd.DataFrame | None


def look_at(desk: Desk, members: Sequence[int], effects: bool, on_progress: OnProgress) -> None:
    """Look at the features of members and keep what is found in the run's folder."""
    for member in members:

        def own(what: str, done: int, total: int, member: int = member) -> None:
            on_progress(f"member {member}: {what}", done, total)

        desk.features(member, effects=effects, on_progress=own)


def looked(run: Run, notes: list[str]) -> list[Looked]:
    """Every member that was looked at as it is now, by id; what is damaged is said and left out."""
    found = []
    for member, folder in sorted(files.kept(run, notes).items()):
        try:
            features = files.load(run.sae(member), folder)
            if features is not None:
                found.append(Looked(member, features, _rules(features, folder)))
        except UserError as error:
            notes.append(f"Features of member {member} are left out: {error.what} {error.where}")
    return found


def _rules(features: Features, folder: Path) -> pd.DataFrame | None:
    """A rule for each active feature and its scores: read, or found and kept."""
    import pandas as pd

    path = folder / RULES
    if path.is_file():
        with suppress(Exception):  # pyarrow has many ways to say so; they are found again
            return pd.read_parquet(path)
    if features.settings["fragments"] < LEAST or not len(features.alive):
        return None
    table = frame(features.alive, by_rules(features, features.alive))
    write_atomically(path, table.to_parquet)
    return table
