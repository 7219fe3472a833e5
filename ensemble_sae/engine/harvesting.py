"""Harvesting for a sweep: nothing to do, before the training, or beside it."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ensemble_sae.config.recipe import AnyRecipe
from ensemble_sae.data.hooks import points_of
from ensemble_sae.data.meta import META
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.dispatch import child
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.engine.stores import Sources
from ensemble_sae.errors import UserError
from ensemble_sae.lm.makers import maker

POLL_S = 0.5


class Harvesting(Protocol):
    """A harvest as the training sees it; leaving the context ends it."""

    def done(self) -> bool:
        """Whether all chunks are there. Raises UserError if the harvest failed."""
        ...

    def wait_for_first_chunks(self, sources: Sources, hooks: set[str]) -> None:
        """Return when every point of these hooks has a training chunk."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class NoHarvest:
    """All chunks are there."""

    def done(self) -> bool:
        return True

    def wait_for_first_chunks(self, sources: Sources, hooks: set[str]) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def now(sources: Sources, data_dir: Path, observer: Observer) -> NoHarvest:
    """Harvest what is not there yet, then return."""
    if not sources.there and sources.recipe is not None:
        make = maker(sources.recipe)
        make.harvest(sources.recipe, data_dir, on_progress=observer.harvesting)
    return NoHarvest()


class Background:
    """A harvest in a process of its own."""

    def __init__(self, recipe: AnyRecipe, data_dir: Path) -> None:
        self._mine, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
        self._process = child.start(_harvest, (theirs, recipe, data_dir), "harvest")
        theirs.close()
        self._ended = False

    def done(self) -> bool:
        if not self._ended and self._mine.poll():
            self._ended = True
            self._raise(self._receive())
        return self._ended

    def wait_for_first_chunks(self, sources: Sources, hooks: set[str]) -> None:
        waiting = {point: sources.paths[point] for point in points_of(hooks)}
        while waiting:
            complete = self.done()
            waiting = {at: path for at, path in waiting.items() if not _has_chunk(path)}
            if waiting and complete:
                return  # check_rows says what is missing
            time.sleep(POLL_S if waiting else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._ended:
            self._process.kill()  # what it wrote stays; the next call continues it
        self._process.join()

    def _receive(self) -> BaseException | None:
        try:
            return self._mine.recv()
        except EOFError:
            self._process.join()
            return UserError(
                "The harvest died.",
                found=f"exit code {self._process.exitcode}",
                next_step="--resume continues the harvest and the training",
            )

    @staticmethod
    def _raise(error: BaseException | None) -> None:
        if error is not None:
            raise error


def in_background(sources: Sources, data_dir: Path, observer: Observer) -> Harvesting:
    """Harvest what is not there yet beside the training."""
    if sources.there or sources.recipe is None:
        return NoHarvest()
    return Background(sources.recipe, data_dir)


def _has_chunk(path: Path) -> bool:
    return (path / META).is_file() and bool(ChunkStore.open(path).chunks())


def _harvest(pipe: Any, recipe: AnyRecipe, data_dir: Path) -> None:
    """Entry of the harvesting process: sends None at the end, or the error."""
    child.settle()
    try:
        maker(recipe).harvest(recipe, data_dir)
        pipe.send(None)
    except UserError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(UserError("The harvest failed.", found=repr(error)))
