"""Adopted members on held-out rows: which rows these are, and what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ensemble_sae.config.recipe import AnyRecipe, Recipe, load_recipe
from ensemble_sae.config.strict import validate
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.progress import Progress
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import Units
from ensemble_sae.dispatch.held_out import features, table_rows
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.lm.makers import maker
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures import Tensors
from ensemble_sae.train import FunctionalEnsemble, Optimiser
from ensemble_sae.train.evaluate import evaluate

ROWS, HELD_OUT = 131_072, 0.5  # of a harvest that no recipe describes
BATCH = 1024
SUFFIX = "-adopted"  # of stores that are no recipe's own

OnProgress = Callable[[Progress], None]


def recipe_of(
    saes: Sequence[Sae], recipe: str | Path | None, model: str | None, dataset: str | None
) -> AnyRecipe | None:
    """The rows that dictionaries are measured on; None where nobody says of which model and text.

    A recipe goes before what the dictionaries' files say; `model` and `dataset` go before both.

    Raises:
        UserError: no such recipe; a hook that synthetic rows lack.
    """
    given = {"model": model, "dataset": dataset}
    hooks = tuple(sorted({sae.config.hook for sae in saes}))
    if recipe is not None:
        found = load_recipe(recipe, given)
        if isinstance(found, SyntheticRecipe):
            _check_there(hooks, found)
            return found
        other = "\n".join(f"{key}={value}" for key, value in given.items() if value)
        digest = hashlib.blake2b(other.encode(), digest_size=4).hexdigest()
        name = f"{found.name}{SUFFIX}-{digest}" if other else found.name
        return found.model_copy(update={"name": name, "hooks": hooks})
    said = {name: value or _agreed(saes, name) for name, value in given.items()}
    if not all(said.values()):
        return None
    context = _agreed(saes, "context")
    about = "\n".join(map(str, (*said.values(), context)))
    digest = hashlib.blake2b(about.encode(), digest_size=4).hexdigest()  # other rows, another store
    values = {
        "name": f"{Path(str(said['model'])).name}{SUFFIX}-{digest}",
        **said,
        "hooks": hooks,
        "rows": ROWS,
        "held_out": HELD_OUT,
        **({"context": context} if context else {}),
    }
    return validate(Recipe, values, "what the dictionaries' files say")


def stores_of(
    recipe: AnyRecipe, saes: Sequence[Sae], data_dir: Path, on_progress: OnProgress
) -> dict[str, ChunkStore]:
    """The stores of the dictionaries' hooks, harvested if they are not there.

    Raises:
        UserError: they cannot be harvested; rows of another width; none are held out.
    """
    make: Any = maker(recipe)
    done = make.finished(recipe, data_dir)
    widths = {h: s.d_activation for h, s in zip(recipe.hooks, done, strict=True)} if done else None
    _check_widths(saes, widths or make.widths(recipe), recipe)  # before hours of a harvest
    made = done or make.harvest(recipe, data_dir, on_progress=on_progress)
    stores: dict[str, ChunkStore] = dict(zip(recipe.hooks, made, strict=True))
    for store in stores.values():
        if not store.rows(held_out=True):
            raise UserError(
                "No row of this store is held out.",
                where=str(store.path),
                next_step="a recipe with held_out = 0.05, or --no-rows",
            )
    return stores


def measured(sae: Sae, store: ChunkStore) -> tuple[dict[str, Any], Tensors]:
    """A member on all held-out rows, in the model's own units.

    Returns:
        Its row of the table, as that of a member that was trained here; and the tensors of its
        features file.
    """
    none = Optimiser("sgd", momentum=0.0)  # nothing is trained: no moments
    tensors = [(sae.params, sae.buffers)]
    ensemble = FunctionalEnsemble.from_members(
        sae.signature, tensors, optimiser=none, batch_size=BATCH
    )
    found = evaluate(ensemble, _batches(store))
    assert found is not None  # built-in signatures encode, and there are rows
    (row,) = table_rows([sae.config], ensemble, found)
    return row, features([sae.config.id], found)


def disagreement(sae: Sae, recipe: AnyRecipe) -> str | None:
    """A sentence where a dictionary's files name another model than the rows are of."""
    said, used = sae.config.hyperparameters.get("model"), getattr(recipe, "model", None)
    if said is None or said == used:
        return None
    return f"{sae.config.name} says that it is of {said}; the rows are of {used or recipe.name}."


def _check_widths(saes: Sequence[Sae], widths: Mapping[str, int], recipe: AnyRecipe) -> None:
    for sae in saes:
        found, wanted = sae.config.d_activation, widths[sae.config.hook]
        if found != wanted:
            raise UserError(
                "A dictionary has another width than the rows of its hook.",
                where=f"{sae.config.name} at {sae.config.hook}",
                found=f"d_activation {found}",
                allowed=f"{wanted}, the width of the hook in {recipe.name}",
                next_step="give the --hook, and the --recipe or --model, that it was trained on",
            )


def _batches(store: ChunkStore) -> Iterator[Tensor]:
    for chunk in store.chunks(held_out=True):
        for rows in store.activations(chunk.index, verify=True).split(BATCH):
            yield Units().enter(rows)


def _agreed(saes: Sequence[Sae], name: str) -> Any:
    """What the dictionaries' files say, if they say one thing."""
    said: Mapping[Any, None] = dict.fromkeys(
        value for sae in saes if (value := sae.config.hyperparameters.get(name)) is not None
    )
    if len(said) > 1:
        raise UserError(
            f"These dictionaries are not all of one {name}.",
            found=", ".join(map(str, said)),
            next_step="--recipe says it for all of them; or adopt them apart",
        )
    return next(iter(said), None)


def _check_there(hooks: Sequence[str], recipe: SyntheticRecipe) -> None:
    for hook in hooks:
        if hook not in recipe.hooks:
            raise UserError(
                "These rows have no such hook.",
                where=recipe.name,
                found=repr(hook),
                allowed=nearest(hook, recipe.hooks),
            )
