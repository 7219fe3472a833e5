"""The stores that a sweep trains on: found on the disk, or harvested first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ensemble_sae.config.recipe import AnyRecipe, load_recipe
from ensemble_sae.data.hooks import Hook, is_plain, points_of
from ensemble_sae.data.joined import Rows, join
from ensemble_sae.data.location import store_path
from ensemble_sae.data.meta import META
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError
from ensemble_sae.lm.makers import maker
from ensemble_sae.sweep.schema import Activations


@dataclass(frozen=True)
class Sources:
    """Where each hook point's store is (or will be), and how wide its rows are."""

    paths: Mapping[str, Path]
    widths: Mapping[str, int]
    recipe: AnyRecipe | None
    there: bool  # all of them are on the disk and complete

    def open(self, hooks: set[str]) -> dict[str, ChunkStore]:
        """Open the stores of all points that some hooks are made of, in the points' order."""
        points = points_of(hooks)
        return {p: ChunkStore.open(path) for p, path in self.paths.items() if p in points}


def rows_of(hooks: Iterable[str], stores: Mapping[str, ChunkStore]) -> dict[str, Rows]:
    """What members of each hook train on: the store of a point, or those of several, joined.

    Single points come first, in the order of their stores, then expressions by their names: an
    order that is the same in every process and whatever the order of the members.

    Raises:
        UserError: the stores of an expression are not of one harvest.
    """
    wanted = set(hooks)
    expressions = {hook: Hook.parse(hook).points for hook in sorted(wanted - stores.keys())}
    single: dict[str, Rows] = {point: s for point, s in stores.items() if point in wanted}
    return single | {
        hook: join([stores[point] for point in points]) for hook, points in expressions.items()
    }


def locate(activations: Activations, data_dir: Path) -> Sources:
    """Find the stores of a sweep; a recipe's may still have to be harvested.

    Raises:
        UserError: no such recipe or folder; stores of another recipe under the same name; an
            unknown hook.
    """
    if activations.store is not None:
        return _from_folder(Path(activations.store))
    assert activations.recipe is not None
    recipe = load_recipe(activations.recipe)
    make = maker(recipe)
    paths = {hook: store_path(data_dir, recipe.name, hook) for hook in recipe.hooks}
    done = make.finished(recipe, data_dir)
    known = {hook: s.d_activation for hook, s in zip(paths, done, strict=True)} if done else None
    return Sources(paths, known or make.widths(recipe), recipe, bool(done))


def _from_folder(folder: Path) -> Sources:
    """One store, or a folder with one store per hook."""
    if (folder / META).is_file():
        store = ChunkStore.open(folder)
        hook = _plain(store.meta.source.hook or folder.name, folder)
        return Sources({hook: folder}, {hook: store.d_activation}, None, True)
    found = sorted(path.parent for path in folder.glob(f"*/{META}"))
    if not found:
        raise UserError(
            "There is no chunk store in this folder.",
            where="activations.store",
            found=str(folder) if folder.is_dir() else f"{folder} (no such folder)",
            allowed="a folder with meta.json, or with one such folder per hook",
            next_step="python -m ensemble_sae.harvest --help, or ChunkStore.write(path, rows)",
        )
    stores = {_plain(path.name, path): ChunkStore.open(path) for path in found}
    widths = {hook: store.d_activation for hook, store in stores.items()}
    return Sources(dict(zip(stores, found, strict=True)), widths, None, True)


def _plain(name: str, folder: Path) -> str:
    if not is_plain(name):
        raise UserError(
            "A hook point of this name would be taken for several.",
            where=str(folder),
            found=repr(name),
            allowed="a name without + and ->",
            next_step="rename the folder, or write the store with another source.hook",
        )
    return name


def check_rows(stores: Mapping[str, Rows], batch_size: int) -> None:
    """Every chunk must fill at least one batch.

    Raises:
        UserError: a store has no training chunk, or only chunks smaller than a batch.
    """
    for hook, store in stores.items():
        largest = max((chunk.rows for chunk in store.chunks()), default=0)
        if largest < batch_size:
            raise UserError(
                "No chunk of this store fills a batch.",
                where=f"train.batch_size, {store.path} ({hook})",
                found=f"batch_size {batch_size:,}; the largest training chunk has {largest:,} rows",
                allowed=f"up to {largest:,}" if largest else "a store with training rows",
            )
