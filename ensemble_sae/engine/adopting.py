"""A run's folder of dictionaries that others trained: whatever works on a run works on them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ensemble_sae.config.recipe import AnyRecipe
from ensemble_sae.config.strict import validate
from ensemble_sae.data.hooks import is_plain
from ensemble_sae.data.location import data_dir as default_data_dir
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import Units
from ensemble_sae.engine.adopting_files import ADOPTED, Facts, write_whole
from ensemble_sae.engine.adopting_rows import OnProgress, disagreement, recipe_of, stores_of
from ensemble_sae.errors import UserError
from ensemble_sae.interop.folders import from_folder
from ensemble_sae.interop.members import as_member
from ensemble_sae.run import Run, Sae
from ensemble_sae.sweep import Sweep

UNKNOWN = "unknown"  # a store's name where nobody knows the rows

Dictionary = Sae | str | Path


def adopted(
    dictionaries: Sequence[Dictionary],
    *,
    run: str | Path,
    hook: str | None = None,
    recipe: str | Path | None = None,
    model: str | None = None,
    dataset: str | None = None,
    rows: bool = True,
    data_dir: str | Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress = lambda progress: None,
) -> Run:
    """Make a run's folder of dictionaries that others trained.

        adopted([ensemble_sae.from_saelens("theirs")], run="runs/theirs", recipe="embedded")

    Each becomes a member by a built-in signature that computes the same (see `as_member`), in the
    model's own units. FVU, L0 and the rest are those on the held-out rows of the recipe.

    Args:
        dictionaries: folders in a known format, or autoencoders: those of `from_saelens` and the
            like as they are, members of runs folded as `export` does.
        run: the folder that is made: there when all of it is written.
        hook: of all of them; default: what their files say.
        recipe: of the rows: a built-in name or a .toml file; default: the model, the text and the
            context that their files say.
        model, dataset: in place of those of the recipe.
        rows: False measures nothing: `fvu`, `l0` and the like are NaN.
        data_dir: where stores are; one that is not there is harvested.
        tell: gets sentences for people. on_progress: called during a harvest.

    Raises:
        UserError: there is something in the folder; a dictionary that cannot be read; nobody says
            the hook, the model or the text; widths that do not fit.
    """
    began, folder = time.time(), Path(run)
    _refuse_existing(folder)
    saes, places = _members(dictionaries, hook)
    found = recipe_of(saes, recipe, model, dataset)
    where = default_data_dir(data_dir)
    stores: dict[str, ChunkStore] = {}
    if rows:
        if found is None:
            raise UserError(
                "Which model and which text are these dictionaries of?",
                allowed="--recipe embedded; or --model NAME and --dataset FILES",
                next_step="--no-rows adopts them without any measurement",
            )
        for sae in saes:
            if note := disagreement(sae, found):
                tell(note)
        stores = stores_of(found, saes, where, on_progress)
    named = str(recipe) if recipe is not None and not (model or dataset) else None
    facts = Facts(_sweep(folder, saes, named, found, where), found, stores, places, began)
    write_whole(folder, saes, facts)
    return Run(folder, {})


def _refuse_existing(folder: Path) -> None:
    if not folder.name:  # "." or "..": it is put in its place whole, under its name
        raise UserError(
            "A run needs a folder of its own.", where=str(folder), next_step="--run NAME"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(
            "There is something in this folder already.",
            where=str(folder),
            next_step="another --run: a run is adopted whole",
        )


def _members(
    dictionaries: Sequence[Dictionary], hook: str | None
) -> tuple[list[Sae], list[str | None]]:
    """The dictionaries as members, numbered, each under a name of its own; and their places."""
    if not dictionaries:
        raise UserError("No dictionary is named.", next_step="give the folders they are in")
    saes = [as_member(one if isinstance(one, Sae) else from_folder(one)) for one in dictionaries]
    places = [None if isinstance(one, Sae) else str(Path(one).resolve()) for one in dictionaries]
    names = Counter(sae.config.name for sae in saes)
    numbered = []
    for id, sae in enumerate(saes):
        own, name = sae.config, sae.config.name
        at = hook or own.hook
        if not at or not is_plain(at):
            raise UserError(
                "At which hook was this dictionary trained?",
                where=name,
                found=repr(at) if at else "nothing about it in its files",
                allowed="a single hook point",
                next_step="--hook blocks.2.hook_resid_pre, for all of them",
            )
        config = replace(
            own,
            id=id,
            name=name if names[name] == 1 else f"{name} #{id}",
            hook=at,
            widths=(own.d_activation,),
        )
        numbered.append(Sae(config, sae.signature, sae.params, sae.buffers, Units()))
    _check_widths(numbered)
    return numbered, places


def _check_widths(saes: Sequence[Sae]) -> None:
    """Dictionaries of one hook are of one width."""
    first: dict[str, Sae] = {}
    for sae in saes:
        other = first.setdefault(sae.config.hook, sae).config
        if other.d_activation != sae.config.d_activation:
            raise UserError(
                "Dictionaries of one hook have different widths.",
                where=f"{sae.config.name} and {other.name}, at {other.hook}",
                found=f"d_activation {sae.config.d_activation} and {other.d_activation}",
                next_step="adopt those of each model and hook apart",
            )


def _sweep(
    folder: Path, saes: Sequence[Sae], named: str | None, recipe: AnyRecipe | None, data_dir: Path
) -> Sweep:
    """What stands in the place of the sweep that a run was made by."""
    source = {"recipe": named} if named else {"store": UNKNOWN}
    if recipe is not None and not named:
        source = {"store": str(data_dir / recipe.name)}
    hooks = {sae.config.hook for sae in saes}
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("_.-")
    values = {
        "name": plain or ADOPTED,
        "activations": source | ({"hook": hooks.pop()} if len(hooks) == 1 else {}),
        "members": [
            {name: getattr(sae.config, name) for name in ("signature", "n_dict", "hook")}
            for sae in saes
        ],
    }
    return validate(Sweep, values, str(folder))
