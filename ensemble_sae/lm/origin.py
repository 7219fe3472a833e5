"""Which language model and which text a run's rows come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_sae.config.recipe import Recipe, load_recipe
from ensemble_sae.config.strict import validate
from ensemble_sae.data.hooks import points_of
from ensemble_sae.data.meta import META, read_meta
from ensemble_sae.errors import UserError
from ensemble_sae.run import Run


def origin(run: Run, **replaced: Any) -> Recipe:
    """The recipe that a run's rows were harvested by, its hooks those of the run.

    It is read from the stores' own descriptions; where these are gone, from the recipe that the
    sweep names.

    Args:
        replaced: fields of the recipe, such as `model` or `dataset`; None leaves a field alone.

    Raises:
        UserError: the rows do not come from a language model, or nobody knows from which.
    """
    given = {name: value for name, value in replaced.items() if value is not None}
    hooks = sorted(points_of(set(run.members["hook"])))
    known = _known(run)
    where = f"the rows of {run.path}"
    if known.get("kind") == "synthetic":
        raise UserError("These rows are synthetic: no language model made them.", where=where)
    values = {"name": run.path.resolve().name or "run", **known, **given, "hooks": hooks}
    if missing := [name for name in ("model", "dataset") if name not in values]:
        raise UserError(
            "Nobody knows which language model these rows come from.",
            where=where,
            found="a store of rows that were brought along",
            next_step=" ".join(f"--{name} {name.upper()}" for name in missing),
        )
    fields = {name: value for name, value in values.items() if name in Recipe.model_fields}
    return validate(Recipe, fields, where)


def _known(run: Run) -> dict[str, Any]:
    """What is written of the rows: fields of a recipe, or nothing."""
    for path in map(Path, run.sweep["stores"].values()):
        if (path / META).is_file():
            found = read_meta(path).source.model_dump()
            plain = {name: value for name, value in found.items() if value is not None}
            return {"kind": "synthetic"} if found.get("kind") == "synthetic" else plain
    if run.sweep.get("recipe") is not None:  # of an adopted run: as it was, whatever its name
        return dict(run.sweep["recipe"])
    name = run.sweep["sweep"]["activations"].get("recipe")
    if name is None:
        return {}
    recipe = load_recipe(name)
    return recipe.model_dump() | ({} if isinstance(recipe, Recipe) else {"kind": "synthetic"})
