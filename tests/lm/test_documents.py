"""Where text comes from, and which of it is held out."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.lm import corpus
from ensemble_sae.lm.documents import documents, with_sides


def recipe(dataset: str | Path, **changes: Any) -> Recipe:
    values = {"name": "t", "model": "m", "dataset": str(dataset), "hooks": ("h",), **changes}
    return Recipe(**values)


def test_embedded_comes_in_a_seeded_order() -> None:
    names = {seed: [n for n, _ in documents(recipe("embedded", seed=seed))] for seed in (0, 1)}
    assert names[0] != names[1]
    assert sorted(names[0]) == sorted(names[1]) == [n for n, t in corpus.documents() if t.strip()]


def test_a_folder_of_files_of_every_kind(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("text of b")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    records = [{"text": "one"}, {"text": None}, {"text": "three"}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    table = pyarrow.table({"text": ["p0", None, "p2"], "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "sub" / "c.parquet")
    expected = [
        ("a.jsonl:1", "one"),
        ("a.jsonl:5", "three"),
        ("b.txt", "text of b"),
        ("sub/c.parquet:0", "p0"),
        ("sub/c.parquet:2", "p2"),
    ]
    assert list(documents(recipe(tmp_path))) == expected
    assert list(documents(recipe(tmp_path / "*.txt"))) == expected[2:3]
    assert list(documents(recipe(tmp_path / "s*" / "*.parquet"))) == expected[3:]
    alone = [("c.parquet:0", "p0"), ("c.parquet:2", "p2")]
    assert list(documents(recipe(tmp_path / "sub" / "c.parquet"))) == alone


@pytest.mark.parametrize("pattern", ["", "*", "**/*.txt"])
def test_sides_stay_when_the_folder_is_moved(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are drawn from names, and a name must not say where the folder lies."""
    found = []
    for place in (tmp_path / "here", tmp_path / "some" / "where" / "else"):
        (place / "texts" / "sub").mkdir(parents=True)
        for i in range(40):
            (place / "texts" / f"{'sub/' * (i % 2)}{i}.txt").write_text(f"text {i}")
        monkeypatch.chdir(place)
        for folder in (place / "texts", Path("texts"), Path("..") / place.name / "texts"):
            asked = recipe(folder / pattern if pattern else folder)
            found.append(list(with_sides(documents(asked), 0.2, 0)))
        monkeypatch.chdir(place / "texts")
        found.append(list(with_sides(documents(recipe(pattern or ".")), 0.2, 0)))
    assert len(found[0]) == (20 if pattern == "*" else 40)
    assert all(sided == found[0] for sided in found)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_missing_text_field_lists_those_there_are(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text('{"content": "x", "id": 1}')
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"content": ["x"], "id": [1]}), path)
    with pytest.raises(UserError) as error:
        list(documents(recipe(path)))
    assert "content, id" in str(error.value)
    assert "text_field" in str(error.value)
    assert [text for _, text in documents(recipe(path, text_field="content"))] == ["x"]
    with pytest.raises(UserError, match="does not hold text"):
        list(documents(recipe(path, text_field="id")))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name, content, where in (
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl:2"),
        ("b.txt", b"\xff\xfe", r"b\.txt"),
        ("c.parquet", b"nothing", r"c\.parquet"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptFile, match=where):
            list(documents(recipe(tmp_path / name)))


@pytest.mark.parametrize("dataset", ["nowhere.txt", "./nowhere", "no*where"])
def test_files_that_are_not_there(dataset: str) -> None:
    with pytest.raises(UserError, match="no such text files"):
        list(documents(recipe(dataset)))


def test_without_a_network_the_error_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'NeelNanda/pile-10k' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError) as error:
        list(documents(recipe("NeelNanda/pile-10k")))
    assert "pile-10k" in str(error.value)
    assert 'dataset = "FOLDER"' in str(error.value)


def test_streamed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = {}

    def stream(name: str, config: str | None, **options: object) -> Any:
        asked.update(options, name=name, config=config)
        return ({"body": f"text {i}"} for i in range(10**9))  # never read to its end

    monkeypatch.setattr(datasets, "load_dataset", stream)
    found = documents(recipe("o/d", dataset_config="en", split="test", text_field="body"))
    assert list(islice(found, 2)) == [("o/d/test:0", "text 0"), ("o/d/test:1", "text 1")]
    assert asked == {"name": "o/d", "config": "en", "split": "test", "streaming": True}


def pairs(n: int) -> list[tuple[str, str]]:
    return [(f"document {i}", "text") for i in range(n)]


def test_the_share_is_kept_and_depends_on_name_and_seed_only() -> None:
    sides = {seed: list(with_sides(pairs(5000), 0.05, seed)) for seed in (0, 1)}
    held = {seed: {d.name for d in found if d.held_out} for seed, found in sides.items()}
    assert [d.index for d in sides[0]] == list(range(5000))
    for names in held.values():
        assert 190 < len(names) < 310
    assert len(held[0] & held[1]) < 40
    backwards = {d.name for d in with_sides(reversed(pairs(5000)), 0.05, 0) if d.held_out}
    assert len(backwards ^ held[0]) <= 2  # but for the document that a side is owed


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_both_sides_get_a_document(share: float, n: int) -> None:
    for seed in range(20):
        assert {d.held_out for d in with_sides(pairs(n), share, seed)} == {True, False}


def test_nothing_held_out_when_so_asked() -> None:
    assert not any(d.held_out for d in with_sides(pairs(100), 0, 0))
    assert len(list(with_sides(pairs(1), 0, 0))) == 1


def test_a_single_document_is_not_on_both_sides() -> None:
    with pytest.raises(UserError, match="single document"):
        list(with_sides(pairs(1), 0.05, 0))
    assert list(with_sides([], 0.05, 0)) == []
