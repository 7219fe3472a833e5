"""Documents in, contexts out: which tokens are run together, and which rows are kept.

Everything here is a pure function of the recipe and the text. So a harvest that was interrupted
finds its place again by walking the same blocks and skipping those it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.lm.documents import Document

Ints = npt.NDArray[np.int32]
Tokenise = Callable[[list[str]], list[list[int]]]

_DOCUMENTS = 64  # tokenised together


@dataclass(frozen=True)
class Block:
    """The contexts of one chunk, all on one side.

    Shapes: C contexts of `context` tokens; the kept rows are those where `keep` is true, in
    row-major order.
    """

    tokens: Tensor  # int32 [C, context], each context begins with BOS
    documents: Tensor  # int32 [C, context], the document that each token belongs to
    keep: Tensor  # bool [C, context]
    held_out: bool
    names: dict[int, str]  # of the documents in this block

    @property
    def rows(self) -> int:
        """The number of kept rows."""
        return int(self.keep.sum())


class Packer:
    """Packs the documents of one side into contexts.

    A context is BOS and the next `context - 1` tokens of the documents joined by BOS. A BOS
    between two documents belongs to the second. What is left at the end is one shorter context,
    padded with BOS tokens that are not kept (a causal model's rows do not see them).

    Args:
        context: tokens per context.
        bos: the token that begins a document.
        drop_bos: do not keep the rows of BOS tokens.
        rows: stop after that many kept rows, to the row; None for no end.
        held_out: the side.
    """

    def __init__(
        self, context: int, bos: int, drop_bos: bool, rows: int | None, held_out: bool
    ) -> None:
        self.context, self.bos, self.drop_bos, self.held_out = context, bos, drop_bos, held_out
        self.rows_left = rows
        self.rest: Ints = np.empty((2, 0), np.int32)  # tokens and documents of no context yet
        self.ready: list[tuple[Ints, npt.NDArray[np.bool_]]] = []  # [2, n, context], [n, context]
        self.names: dict[int, str] = {}

    @property
    def full(self) -> bool:
        """Whether all the rows that were asked for are there."""
        return self.rows_left == 0

    @property
    def contexts(self) -> int:
        """The number of contexts that wait to be taken."""
        return sum(len(keep) for _, keep in self.ready)

    def add(self, document: Document, tokens: list[int]) -> None:
        """Append a document, given as its tokens without BOS."""
        self.names[document.index] = document.name
        joined = tokens if self.rest.shape[1] == 0 else [self.bos, *tokens]
        piece = np.array([joined, [document.index] * len(joined)], np.int32)
        stream = np.concatenate([self.rest, piece], axis=1)
        body = self.context - 1
        cut = stream.shape[1] // body * body
        self.rest = stream[:, cut:]
        if cut:
            self._cut(stream[:, :cut].reshape(2, -1, body), padding=0)

    def finish(self) -> None:
        """Make the last, shorter context of what is left."""
        padding = self.context - 1 - self.rest.shape[1]
        if self.rest.shape[1]:
            last = np.pad(self.rest, ((0, 0), (0, padding)), mode="edge")
            last[0, self.rest.shape[1] :] = self.bos
            self.rest = self.rest[:, :0]
            self._cut(last[:, None], padding)

    def _cut(self, bodies: Ints, padding: int) -> None:
        """Put BOS before each of `[2, n, context - 1]` and choose the kept rows."""
        starts = bodies[:, :, :1].copy()
        starts[0] = self.bos
        contexts = np.concatenate([starts, bodies], axis=2)
        keep = contexts[0] != self.bos if self.drop_bos else np.ones(contexts[0].shape, bool)
        keep[:, self.context - padding :] = False
        if self.rows_left is not None:
            count = keep.cumsum().reshape(keep.shape)
            keep &= count <= self.rows_left
            self.rows_left -= int(keep.sum())
            used = keep.any(axis=1)
            contexts, keep = contexts[:, used], keep[used]
        if len(keep):
            self.ready.append((contexts, keep))

    def take(self, count: int) -> Block:
        """Take the first `count` contexts, or all there are."""
        contexts = np.concatenate([c for c, _ in self.ready], axis=1)
        keep = np.concatenate([k for _, k in self.ready])
        self.ready = [(contexts[:, count:], keep[count:])] if len(keep) > count else []
        tokens, documents = contexts[:, :count]
        present = np.unique(documents).tolist()
        names = {index: self.names[index] for index in present}
        for index in present[:-1]:  # the last one may go on in the next block
            del self.names[index]
        return Block(
            torch.from_numpy(tokens.copy()),
            torch.from_numpy(documents.copy()),
            torch.from_numpy(keep[:count].copy()),
            self.held_out,
            names,
        )


def blocks(
    recipe: Recipe, documents: Iterable[Document], tokenise: Tokenise, bos: int
) -> Iterator[Block]:
    """Yield the contexts of chunk 0, 1, 2, ...: full ones as they fill, the rest at the end.

    With `recipe.rows` set, each side ends at its share of them; a side that is full takes no
    more documents. The first held-out block comes right after the first training block even if
    it is small, so that a store can be evaluated on while it still grows.

    Args:
        recipe: context, rows, chunk_rows, held_out, drop_bos.
        documents: in their order, each with its side.
        tokenise: texts -> tokens, without special ones.
        bos: the token that begins a document.
    """
    training, held = _packers(recipe, bos)
    per_chunk = max(1, recipe.chunk_rows // (recipe.context - recipe.drop_bos))
    held_started = False
    stream = iter(documents)
    while not (training.full and held.full) and (batch := list(islice(stream, _DOCUMENTS))):
        wanted = [d for d in batch if not (held if d.held_out else training).full]
        for document, tokens in zip(wanted, tokenise([d.text for d in wanted]), strict=True):
            packer = held if document.held_out else training
            if packer.full or not tokens:
                continue
            packer.add(document, tokens)
            while packer.contexts >= per_chunk:
                yield packer.take(per_chunk)
                held_started |= packer is held
                if not held_started and held.contexts:
                    yield held.take(per_chunk)
                    held_started = True
    for packer in (training, held):
        packer.finish()
        while packer.contexts:
            yield packer.take(per_chunk)


def _packers(recipe: Recipe, bos: int) -> tuple[Packer, Packer]:
    rows, held_rows = recipe.rows, None if recipe.held_out else 0
    if rows is not None:
        if recipe.held_out:
            held_rows = min(max(1, round(rows * recipe.held_out)), rows - 1)
        rows -= held_rows or 0
    return (
        Packer(recipe.context, bos, recipe.drop_bos, rows, held_out=False),
        Packer(recipe.context, bos, recipe.drop_bos, held_rows, held_out=True),
    )
