"""`--discard`: chunks are deleted when nobody will read them again.

A chunk goes when every worker has trained on it, for every hook that reads it, and every
checkpoint that is kept lies behind it, so that a resume never needs it. Held-out chunks stay.
`discarded.json` in the store says which chunks are gone on purpose; a chunk that was harvested
again is there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ensemble_sae.data.hooks import Hook
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.dispatch.schedule import Round
from ensemble_sae.errors import UserError
from ensemble_sae.files import read_json, write_json
from ensemble_sae.run import Checkpoint, Checkpoints
from ensemble_sae.sweep import Sweep

MARK = "discarded.json"


class Discard(Observer):
    """Deletes training chunks behind the oldest checkpoint that is kept.

    Args:
        stores: by hook point; hooks: as members name them; rounds: all that are known by now.
    """

    def __init__(
        self,
        stores: Mapping[str, ChunkStore],
        hooks: Iterable[str],
        rounds: Callable[[], list[Round]],
        checkpoints: Checkpoints,
    ) -> None:
        self._stores, self._rounds, self._checkpoints = stores, rounds, checkpoints
        points = {hook: Hook.parse(hook).points for hook in hooks}
        self._readers = {
            point: [hook for hook, parts in points.items() if point in parts] for point in stores
        }

    def saved(self, checkpoint: Checkpoint) -> None:
        kept = self._checkpoints.all()
        oldest = min(one.position.round for one in kept)
        self._delete([round for round in self._rounds() if round.number < oldest])

    def finished(self, table: Any) -> None:
        self._delete(self._rounds())

    def _delete(self, rounds: list[Round]) -> None:
        for point, store in self._stores.items():
            read = [
                {round.items[hook].chunk for round in rounds if hook in round.items}
                for hook in self._readers[point]
            ]
            used = sorted(set.intersection(*read)) if read else []
            files = [store.meta.chunks[index].file for index in used]
            there = [file for file in files if (store.path / file).exists()]
            if there:  # said before it is done: a missing chunk must never be a riddle
                write_json(store.path / MARK, sorted({*_marked(store), *there}))
            for file in there:
                (store.path / file).unlink()


def check_discard(sweep: Sweep) -> None:
    """Only chunks that can be harvested again, and that are read once, may be discarded.

    Raises:
        UserError: a store without a recipe, or several epochs.
    """
    if sweep.activations.recipe is None:
        raise UserError(
            "--discard deletes chunks: only those that a recipe can make again.",
            where="activations",
            found=f"store = {sweep.activations.store!r}",
            allowed="recipe = ...",
        )
    if sweep.train.epochs != 1:
        raise UserError(
            "--discard is for a single pass: a second epoch needs the chunks again.",
            where="train.epochs",
            found=str(sweep.train.epochs),
            allowed="1",
            next_step="leave --discard out, or --set train.epochs=1",
        )


def refuse_discarded(
    stores: Mapping[str, ChunkStore], rounds: Iterable[Round], recipe: str | None
) -> None:
    """Say it before the training if a chunk that these rounds need was discarded.

    Args:
        stores: by hook point.

    Raises:
        UserError: names the chunk, and how to make it again.
    """
    marked = {point: set(_marked(store)) for point, store in stores.items()}
    for round in rounds:
        needed = [(p, item) for h, item in round.items.items() for p in Hook.parse(h).points]
        for point, item in needed:
            file = stores[point].meta.chunks[item.chunk].file
            path = stores[point].path / file
            if file in marked[point] and not path.exists():
                raise UserError(
                    "A chunk was discarded after another run had trained on it (--discard).",
                    where=str(path),
                    next_step=f"python -m ensemble_sae.harvest {recipe or 'RECIPE'} --overwrite",
                )


def _marked(store: ChunkStore) -> list[str]:
    path = store.path / MARK
    return list(read_json(path)) if path.is_file() else []
