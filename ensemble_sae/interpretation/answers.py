"""Answers of language models, kept so that nothing is asked twice.

One JSON file per answer, named by the SHA-256 of the request: the model and all that was sent with
it, but not where to. A file appears when it is complete, so a run that is killed leaves only whole
answers; one that is damaged all the same is passed over, and asked again. Keys are in no request
and so in no file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import read_json, write_json


class Answer(NamedTuple):
    """What a model answered.

    Attributes:
        text: its words.
        finish: why it stopped, such as "stop" or "length".
        tokens_in, tokens_out: as the endpoint counted them; 0 where it does not say.
        expected: where the endpoint gave probabilities: at which character of the text a number
            from 0 to 10 begins, and the expected value of what could have stood there.
    """

    text: str
    finish: str
    tokens_in: int
    tokens_out: int
    expected: tuple[tuple[int, float], ...] = ()


class Answers:
    """The answers in a folder; without one, those of this object's lifetime.

    Args:
        folder: made if it is not there.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._kept: dict[str, Answer] = {}
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    "The folder for answers cannot be made.",
                    where=str(folder),
                    found=error.strerror,
                ) from None

    def find(self, request: dict[str, Any]) -> Answer | None:
        """What was answered to this request; None if it was never asked, or the file is damaged."""
        name = name_of(request)
        if name not in self._kept and self.folder is not None:
            try:
                self._kept[name] = _parsed(read_json(self.folder / f"{name}.json"), name)
            except (UserError, CorruptFile, OSError, KeyError, TypeError, ValueError):
                return None
        return self._kept.get(name)

    def keep(self, request: dict[str, Any], answer: Answer) -> None:
        """Keep an answer, on disk before this returns."""
        name = name_of(request)
        if self.folder is not None:
            kept = {"request": name, "model": request["model"], **answer._asdict()}
            write_json(self.folder / f"{name}.json", kept)
        self._kept[name] = answer


def name_of(request: dict[str, Any]) -> str:
    """SHA-256 of a request, in hexadecimal."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(value: Any, name: str) -> Answer:
    """An answer out of its file; one of several errors if it is not one."""
    if value["request"] != name or not isinstance(value["text"], str):
        raise ValueError(name)
    expected = tuple((int(place), float(number)) for place, number in value["expected"])
    counts = int(value["tokens_in"]), int(value["tokens_out"])
    return Answer(value["text"], str(value["finish"]), *counts, expected)
