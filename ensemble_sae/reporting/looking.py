"""Members whose features the page shows: looked at now, or found where they were looked at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_sae.errors import UserError
from ensemble_sae.files import write_atomically
from ensemble_sae.inspection import files
from ensemble_sae.inspection.feature import Features
from ensemble_sae.inspection.looking import OnProgress
from ensemble_sae.inspection.request import FRAGMENTS, PER_DOCUMENT, WIDTH, Desk
from ensemble_sae.interpretation.comparison import LEAST, by_rules, frame
from ensemble_sae.lm.origin import origin
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

RULES = "rules.parquet"


@dataclass(frozen=True)
class Looked:
    """One member that was looked at.

    Attributes:
        features: what was found of them. rules: a row for each active one: `rule`, `kind`, and
            the scores `top`, `random`, `top_and_random`; None where the text was too short.
        call: the Python that finds these features again; "" where it takes more than a line.
    """

    member: int
    features: Features
    rules: pd.DataFrame | None
    call: str


def look_at(desk: Desk, members: Sequence[int], effects: bool, on_progress: OnProgress) -> None:
    """Look at the features of members and keep what is found in the run's folder."""
    for member in members:

        def own(what: str, done: int, total: int, member: int = member) -> None:
            on_progress(f"member {member}: {what}", done, total)

        desk.features(member, effects=effects, on_progress=own)


def looked(run: Run, notes: list[str]) -> list[Looked]:
    """Every member that was looked at as it is now, by id; what is damaged is said and left out."""
    found, usual = [], _usual(run)
    for member, folder in sorted(files.kept(run, notes).items()):
        try:
            features = files.load(run.sae(member), folder)
            if features is not None:
                call = _call(member, features.settings, usual)
                found.append(Looked(member, features, _rules(features, folder), call))
        except UserError as error:
            notes.append(f"Features of member {member} are left out: {error.what} {error.where}")
    return found


def _usual(run: Run) -> dict[str, Any]:
    """What features are looked for with, where nothing is said."""
    usual: dict[str, Any] = {"count": FRAGMENTS, "width": WIDTH, "per_document": PER_DOCUMENT}
    with suppress(UserError):  # of rows that were brought along nobody knows the model
        recipe = origin(run)
        usual |= {"model": recipe.model, "dataset": recipe.dataset}
    return usual


def _call(member: int, settings: dict[str, Any], usual: dict[str, Any]) -> str:
    """What was asked for is part of the question: asked otherwise, others are found."""
    if settings.get("tuned") is not None:
        return ""
    asked = {**settings, **settings.get("asked", {})}
    names = ("count", "width", "per_document", "model", "dataset")
    other = [n for n in names if n in asked and asked[n] != usual.get(n)]
    more = [f"{name}={asked[name]!r}" for name in other]
    return f"ensemble_sae.features({', '.join(['run', str(member), *more])})"


def _rules(features: Features, folder: Path) -> pd.DataFrame | None:
    """A rule for each active feature and its scores: read, or found and kept."""
    import pandas as pd

    path = folder / RULES
    if path.is_file():
        with suppress(Exception):  # damaged ones, in whichever words, are found again
            found = pd.read_parquet(path)
            if {"rule", "top_and_random"} <= set(found):
                return found
    if features.settings["fragments"] < LEAST or not len(features.alive):
        return None
    table = frame(features.alive, by_rules(features, features.alive))
    with suppress(OSError):  # where nothing can be kept, they are found again next time
        write_atomically(path, table.to_parquet)
    return table
