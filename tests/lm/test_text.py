"""Contexts and fragments of a text, against tokens that are put together by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.errors import UserError
from ensemble_sae.lm import documents as of_documents
from ensemble_sae.lm.corpus import documents as corpus
from ensemble_sae.lm.documents import documents, with_sides
from ensemble_sae.lm.load import load_model
from ensemble_sae.lm.text import contexts, fragments, token_counts

BOS = 0
LENGTHS = (700, 30, 900, 5, 400, 1200, 60, 350, 800, 500)  # characters of the documents


@pytest.fixture(scope="module")
def bridge():
    return load_model("embedded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten documents; one spells out the token that begins documents."""
    path: Path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    _, text = next(corpus())
    pieces = [text[1000 * n : 1000 * n + length] for n, length in enumerate(LENGTHS)]
    pieces[2] = pieces[2][:50] + "<|endoftext|>" + pieces[2][50:]
    path.write_text("\n".join(json.dumps({"text": piece}) for piece in pieces))
    return path


def recipe(dataset: Path, **changes: Any) -> Recipe:
    values = {"name": "t", "model": "embedded", "dataset": str(dataset), "hooks": ("h",)}
    return Recipe(**{**values, "context": 32, "held_out": 0.3, **changes})


def tokens_of(bridge: Any, given: Recipe, held_out: bool | None) -> list[tuple[int, list[int]]]:
    """(index, tokens) of the documents of a side, tokenised one by one."""
    encode = bridge.tokenizer
    return [
        (d.index, encode(d.text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        for d in with_sides(documents(given), given.held_out, given.seed)
        if held_out is None or d.held_out == held_out
    ]


def packed(
    found: list[tuple[int, list[int]]], width: int, rows: int
) -> tuple[list[list[int]], list[list[int]], list[list[bool]]]:
    """The contexts of joined documents, token by token: ids, documents, which are text."""
    stream: list[tuple[int, int]] = []
    for index, ids in found:
        stream += [(BOS, index)] * bool(stream) + [(token, index) for token in ids]
    tokens, owners, text, left = [], [], [], rows
    for start in range(0, len(stream), width - 1):
        part = stream[start : start + width - 1]
        part = [(BOS, part[0][1]), *part]
        real = min(left, len(part))
        if real <= 0:
            break
        left -= real
        part += [(BOS, part[-1][1])] * (width - len(part))
        tokens.append([token for token, _ in part])
        owners.append([owner for _, owner in part])
        text.append([place < real for place in range(width)])
    return tokens, owners, text


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("rows", [50, 64, 10_000])
def test_contexts_are_the_joined_documents_of_a_side(bridge, folder, held_out, rows):
    given = recipe(folder)
    found = contexts(given, bridge, rows, held_out=held_out)
    documents = tokens_of(bridge, given, held_out)
    assert len(documents) > 1
    tokens, owners, text = packed(documents, 32, rows)
    assert found.tokens.tolist() == tokens
    assert found.documents.tolist() == owners
    assert found.is_text.tolist() == text
    assert torch.equal(found.is_read, found.is_text & (found.tokens != BOS))
    assert int(found.is_text.sum()) == min(rows, sum(map(sum, packed(documents, 32, 10**9)[2])))
    assert (found.tokens[:, 0] == BOS).all()
    part = found.part(1, 3)
    assert part.tokens.tolist() == tokens[1:3]
    assert part.is_read.tolist() == found.is_read[1:3].tolist()


def test_bos_is_read_where_the_harvest_kept_it(bridge, folder):
    found = contexts(recipe(folder, drop_bos=False), bridge, 100)
    assert torch.equal(found.is_read, found.is_text)


def test_no_text_on_a_side_is_said_without_reading_it_all(bridge, folder, monkeypatch):
    monkeypatch.setattr(of_documents, "_json_lines", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match=r"no held-out text[\s\S]*held_out = 0[\s\S]*--dataset"):
        contexts(recipe(folder, held_out=0.0), bridge, 100)


def test_all_of_a_text_that_nothing_was_trained_on(bridge, tmp_path):
    (tmp_path / "one.txt").write_text("A single document. " * 20)
    given = recipe(tmp_path / "one.txt", held_out=0.0)
    found = contexts(given, bridge, 10_000, held_out=False)
    assert found.tokens.tolist() == packed(tokens_of(bridge, given, None), 32, 10_000)[0]


def test_a_data_set_without_text_is_no_matter_of_held_out_text(bridge, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"no text[\s\S]*empty\.txt[\s\S]*empty doc") as told:
        contexts(recipe(tmp_path / "empty.txt", held_out=0.0), bridge, 100, held_out=False)
    assert "--dataset" not in str(told.value)


def test_numbers_that_are_too_small(bridge, folder):
    with pytest.raises(UserError, match=r"rows[\s\S]*found: +1\n[\s\S]*2 or more"):
        contexts(recipe(folder), bridge, 1)
    for name, found, least in (("width", 1, 2), ("count", 0, 1), ("per_document", 0, 1)):
        with pytest.raises(UserError, match=rf"{name}[\s\S]*: +{found}\n[\s\S]*{least} or more"):
            fragments(recipe(folder), bridge, **{"count": 3, name: found})


def test_token_counts_are_those_of_the_training_text(bridge, folder):
    given = recipe(folder)
    ids = [ids for _, ids in tokens_of(bridge, given, False)]
    every = Counter(token for own in ids for token in own)
    found = token_counts(given, bridge, 10**9)
    assert {t: c for t, c in enumerate(found.tolist()) if c} == dict(every)
    assert len(found) == 4096
    first = token_counts(given, bridge, len(ids[0]) + 1)  # whole documents
    assert int(first.sum()) == len(ids[0]) + len(ids[1])


def test_fragments_are_pieces_of_their_documents(bridge, folder):
    given = recipe(folder)
    found = fragments(given, bridge, 1000, width=17, per_document=4)
    of = dict(tokens_of(bridge, given, None))
    places: dict[int, list[int]] = {}
    for row, owners in zip(found.tokens.tolist(), found.documents.tolist(), strict=True):
        (owner,) = set(owners)
        assert row[0] == BOS
        starts = [s for s in range(len(of[owner]) - 15) if of[owner][s : s + 16] == row[1:]]
        assert starts, "no piece of the document"
        places.setdefault(owner, []).append(starts[0])
    assert {k: len(v) for k, v in places.items()} == {
        index: min(4, len(ids) // 16) for index, ids in of.items() if len(ids) >= 16
    }
    for starts in places.values():
        gaps = [b - a for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False)]
        assert all(gap >= 16 for gap in gaps), "one lies over another"
    assert found.is_text.all()
    assert found.is_read[:, 1:].all()
    assert not found.is_read[:, 0].any()


def test_every_document_gives_one_before_any_gives_two(bridge, folder):
    given = recipe(folder)
    long = sum(len(ids) >= 16 for _, ids in tokens_of(bridge, given, None))
    found = fragments(given, bridge, long + 1, width=17)
    owners = found.documents[:, 0].tolist()
    assert len(owners) == long + 1
    assert len(set(owners[:long])) == long
    again = fragments(given, bridge, long + 1, width=17)
    assert torch.equal(found.tokens, again.tokens)
    other = fragments(given.model_copy(update={"seed": 1}), bridge, long + 1, width=17)
    assert not torch.equal(found.tokens, other.tokens)
    kept = fragments(given.model_copy(update={"drop_bos": False}), bridge, 2, width=17)
    assert kept.is_read.all()


def test_documents_that_are_too_short(bridge, folder):
    with pytest.raises(UserError, match=r"No document is as long[\s\S]*5000 tokens"):
        fragments(recipe(folder), bridge, 10, width=5001)
