"""Text for a language model, in contexts: what members are evaluated on and looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.errors import UserError
from ensemble_sae.lm.documents import Document, documents, with_sides
from ensemble_sae.lm.harvest_contexts import Packer
from ensemble_sae.lm.harvest_model import tokeniser
from ensemble_sae.randomness import generator

_DOCUMENTS = 64  # tokenised together


class Text(NamedTuple):
    """C contexts of T tokens.

    Attributes:
        tokens: `[C, T]` int64, each context begins with BOS.
        documents: which document each token is of, `[C, T]` int64.
        is_text: False for padding, `[C, T]`.
        is_read: the rows that a member is trained on: text and, if the harvest drops them, no BOS.
    """

    tokens: Tensor
    documents: Tensor
    is_text: Tensor
    is_read: Tensor

    def part(self, start: int, stop: int) -> Text:
        """Contexts `start` to `stop`."""
        return Text(*(values[start:stop] for values in self))


def contexts(recipe: Recipe, bridge: Any, rows: int, *, held_out: bool = True) -> Text:
    """The first contexts of one side of a recipe's documents, packed as the harvest packs them.

    Args:
        rows: tokens wanted, those of BOS among them, padding not; fewer if the text ends.
        held_out: documents that no member was trained on, or those of the training.

    Raises:
        UserError: there is no text on this side, or fewer than two rows are asked for.
    """
    _at_least(2, rows, "contexts(rows)", "BOS and a token")
    tokenise, bos = tokeniser(bridge)
    packer = Packer(recipe.context, bos, False, rows, held_out)
    for document, tokens in _tokenised(recipe, tokenise, held_out):
        packer.add(document, tokens)
        if packer.full:
            break
    packer.finish()
    if not packer.contexts:
        raise _no_text(recipe, held_out)
    block = packer.take(packer.contexts)
    is_read = block.keep & (block.tokens != bos) if recipe.drop_bos else block.keep
    return Text(block.tokens.long(), block.documents.long(), block.keep, is_read)


def fragments(
    recipe: Recipe, bridge: Any, count: int, *, width: int = 64, per_document: int = 8
) -> Text:
    """Short contexts from all over a recipe's documents, those of both sides.

    A fragment is BOS and `width - 1` tokens in a row of one document, from a place that is drawn
    at random; a document that is too short gives none. Bills et al. 2023, "Language models can
    explain neurons in language models", take 50,000 of 64 tokens, one per document. So it is here
    where there are as many documents; else every document gives a second, a third ...

    Args:
        count: fragments wanted; fewer if the documents do not give them.
        width: tokens of each, BOS among them: 2 at least.
        per_document: at most so many of one document, which do not overlap.

    Raises:
        UserError: no document is that long, or a number is too small.
    """
    _at_least(1, count, "fragments(count)")
    _at_least(2, width, "fragments(width)", "BOS and a token")
    _at_least(1, per_document, "fragments(per_document)")
    tokenise, bos = tokeniser(bridge)
    body = width - 1
    rounds: list[list[tuple[int, Tensor]]] = [[] for _ in range(per_document)]
    for document, tokens in _tokenised(recipe, tokenise, None):
        ids = torch.tensor(tokens, dtype=torch.int32)
        starts = _starts(len(ids), body, per_document, recipe.seed, document.index)
        for own, start in zip(rounds, starts, strict=False):
            own.append((document.index, ids[start : start + body].clone()))
        if len(rounds[0]) >= count:
            break
    found = list(islice(chain.from_iterable(rounds), count))
    if not found:
        raise UserError(
            "No document is as long as a fragment.",
            where=f"dataset = {recipe.dataset!r}",
            allowed=f"{body} tokens",
            next_step="take shorter fragments",
        )
    bodies = torch.stack([ids for _, ids in found]).long()
    whole = torch.cat([torch.full_like(bodies[:, :1], bos), bodies], 1)
    of = torch.tensor([document for document, _ in found])[:, None].expand_as(whole)
    is_read = torch.ones_like(whole, dtype=torch.bool)
    is_read[:, 0] = not recipe.drop_bos
    return Text(whole, of, torch.ones_like(is_read), is_read)


def token_counts(recipe: Recipe, bridge: Any, rows: int) -> Tensor:
    """How often each token occurs in the first `rows` of training text: int64 `[d_vocab]`."""
    tokenise, _ = tokeniser(bridge)
    counts = torch.zeros(bridge.cfg.d_vocab, dtype=torch.int64)
    for _, tokens in _tokenised(recipe, tokenise, False):
        counts += torch.bincount(torch.tensor(tokens), minlength=len(counts))
        if counts.sum() >= rows:
            break
    return counts


def _at_least(least: int, found: int, where: str, why: str = "") -> None:
    if found < least:
        raise UserError(
            "This number is too small.",
            where=where,
            found=str(found),
            allowed=f"{least} or more" + (f": {why}" if why else ""),
        )


def _no_text(recipe: Recipe, held_out: bool) -> UserError:
    if held_out:
        return UserError(
            "There is no held-out text.",
            where=f"dataset = {recipe.dataset!r}, held_out = {recipe.held_out:g}",
            next_step="--dataset FILES gives text that members were not trained on",
        )
    return UserError(
        "There is no text in the files that were read.",
        where=f"dataset = {recipe.dataset!r}",
        found="only empty documents",
        allowed="documents with text in them",
    )


def _tokenised(
    recipe: Recipe, tokenise: Callable[[list[str]], list[list[int]]], held_out: bool | None
) -> Iterator[tuple[Document, list[int]]]:
    """Documents of one side, or of both, that have tokens."""
    if held_out and recipe.held_out == 0:
        return  # seen without walking through all of a data set
    sided = with_sides(documents(recipe), recipe.held_out, recipe.seed)
    stream = (d for d in sided if held_out is None or d.held_out == held_out)
    while batch := list(islice(stream, _DOCUMENTS)):
        for document, tokens in zip(batch, tokenise([d.text for d in batch]), strict=True):
            if tokens:
                yield document, tokens


def _starts(length: int, body: int, most: int, seed: int, document: int) -> list[int]:
    """Where fragments of a document begin: at random, none over another, in random order."""
    count = min(most, length // body)
    if count == 0:
        return []
    draw = generator(seed, "fragments", document)
    # Cut what is left over into gaps before the fragments: the places do not overlap.
    gaps = torch.randint(length - count * body + 1, (count,), generator=draw).sort().values
    places = gaps + body * torch.arange(count)
    return [int(place) for place in places[torch.randperm(count, generator=draw)]]
