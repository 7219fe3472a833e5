"""Text to run a language model over, as a stream of named documents."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from math import ceil
from pathlib import Path
from typing import Any

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.errors import CorruptFile, UserError, nearest
from ensemble_sae.randomness import key, permutation

TEXT_FILES = frozenset({".txt", ".md", ".text", ".py", ".rst"})
JSON_FILES = frozenset({".jsonl", ".ndjson"})
PARQUET_FILES = frozenset({".parquet"})
_KNOWN = TEXT_FILES | JSON_FILES | PARQUET_FILES


@dataclass(frozen=True, slots=True)
class Document:
    """One document, and on which side it is."""

    index: int  # in the order of the data set
    name: str
    text: str
    held_out: bool


def documents(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The recipe's documents as (name, text), always in the same order.

    The embedded corpus comes in an order drawn from the seed; files sorted by path; a Hugging
    Face data set, streamed, in its own order. Empty documents are left out. A local document's
    name is relative to the data set's folder, so that it stays when the folder is moved: the
    side that a document is on is drawn from it.

    Raises:
        UserError: nothing there, no such text field (lists the fields), or not reachable.
    """
    if recipe.dataset == "embedded":
        found: Iterable[tuple[str, str]] = _embedded(recipe.seed)
    elif _is_local(recipe.dataset):
        found = _local(recipe.dataset, recipe.text_field)
    else:
        found = _streamed(recipe)
    return ((name, text) for name, text in found if text.strip())


def with_sides(documents: Iterable[tuple[str, str]], share: float, seed: int) -> Iterator[Document]:
    """Number the documents and say which are held out.

    Which ones depends on the name and the seed only: about `share` of them. So that there is
    something to train and to evaluate on however short the data set, each side gets at least
    one of the first `1 / share` documents: if the draw gives it none, the closest one.

    Raises:
        UserError: a single document cannot be on both sides.
    """
    stream = iter(documents)
    if share == 0:
        yield from (Document(i, name, text, False) for i, (name, text) in enumerate(stream))
        return
    start = list(islice(stream, max(2, ceil(1 / share))))
    draws = [_draw(name, seed) for name, _ in start]
    if len(start) == 1:
        raise UserError(
            "A data set of a single document cannot be both trained on and held out.",
            found=start[0][0],
            next_step="set held_out = 0, or cut the text into several documents",
        )
    sides = [draw < share for draw in draws]
    if draws and all(sides):
        sides[draws.index(max(draws))] = False
    elif draws and not any(sides):
        sides[draws.index(min(draws))] = True
    for index, ((name, text), side) in enumerate(zip(start, sides, strict=True)):
        yield Document(index, name, text, side)
    for index, (name, text) in enumerate(stream, len(start)):
        yield Document(index, name, text, _draw(name, seed) < share)


def _draw(name: str, seed: int) -> float:
    return key(seed, "held_out", name) / 2**63


def _embedded(seed: int) -> Iterator[tuple[str, str]]:
    from ensemble_sae.lm import corpus

    found = list(corpus.documents())
    for index in permutation(len(found), seed, "documents").tolist():
        yield found[index]


def _is_local(dataset: str) -> bool:
    path = Path(dataset).expanduser()
    return (
        path.exists()
        or path.suffix in _KNOWN
        or dataset.startswith(("/", "./", "../", "~"))
        or glob.has_magic(dataset)
    )


def _files(dataset: str) -> list[tuple[str, Path]]:
    """The files of a local data set, sorted, each with its name: its path from `_root` on."""
    pattern = Path(dataset).expanduser()
    root = _root(pattern)
    if pattern.is_dir():
        found = [path for path in pattern.rglob("*") if path.suffix in _KNOWN]
    elif pattern.is_file():
        found = [pattern]
    else:
        found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise UserError(
            "There are no such text files.",
            where="dataset",
            found=dataset,
            allowed=f"a file, a folder or a glob of files that end in {', '.join(sorted(_KNOWN))}",
        )
    return [(path.relative_to(root).as_posix(), path) for path in files]


def _root(pattern: Path) -> Path:
    """The folder itself, a file's folder, or the last folder before a glob's first magic part."""
    if pattern.is_dir():
        return pattern
    if pattern.is_file():
        return pattern.parent
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _local(dataset: str, field: str) -> Iterator[tuple[str, str]]:
    for name, path in _files(dataset):
        if path.suffix in JSON_FILES:
            yield from ((f"{name}:{n}", text) for n, text in _json_lines(path, field))
        elif path.suffix in PARQUET_FILES:
            yield from ((f"{name}:{n}", text) for n, text in _parquet(path, field))
        else:
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise CorruptFile(
                    "This file is not UTF-8 text.", where=str(path), found=str(error)
                ) from None


def _json_lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """The line's number, from 1, and its text."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorruptFile(
                    "A line is not valid JSON.", where=where, found=str(error)
                ) from None
            yield number, _text(record, field, where)


def _parquet(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """The row's number, from 0, and its text."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CorruptFile(
            "This is not a Parquet file.", where=str(path), found=str(error)
        ) from None
    _check_field(field, file.schema_arrow.names, str(path))
    row = 0
    for batch in file.iter_batches(batch_size=256, columns=[field]):
        for text in batch.column(0).to_pylist():
            yield row, _text({field: text}, field, f"{path}:{row}")
            row += 1


def _streamed(recipe: Recipe) -> Iterator[tuple[str, str]]:
    import datasets

    name = recipe.dataset
    try:
        stream = datasets.load_dataset(
            name, recipe.dataset_config, split=recipe.split, streaming=True
        )
        for index, record in enumerate(stream):
            where = f"{name}/{recipe.split}:{index}"
            yield where, _text(record, recipe.text_field, where)
    except (OSError, ValueError) as error:
        raise UserError(
            "The data set cannot be read from the Hugging Face Hub.",
            where=f"dataset = {name!r}, split = {recipe.split!r}",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_step='without a network, give local files: dataset = "FOLDER" or "FILES*.jsonl" '
            '(text, .jsonl or .parquet), or dataset = "embedded"',
        ) from error


def _text(record: Any, field: str, where: str) -> str:
    """The text of a record; null counts as empty."""
    _check_field(field, list(record) if isinstance(record, dict) else [], where)
    text = record[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(
            "The text field does not hold text.",
            where=f"{where}: {field}",
            found=type(text).__name__,
            allowed="a string",
        )
    return text


def _check_field(field: str, fields: list[str], where: str) -> None:
    if field not in fields:
        raise UserError(
            "The data set has no such text field.",
            where=where,
            found=field,
            allowed=nearest(field, fields),
            next_step='name it in the recipe: text_field = "..."',
        )
