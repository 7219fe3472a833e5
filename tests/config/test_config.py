"""Where TOML files are found, and how a schema explains what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, field_validator, model_validator

from ensemble_sae.config import builtin
from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.config.strict import Refused, Strict, read_toml, validate
from ensemble_sae.errors import UserError


class Inner(Strict):
    size: int = Field(1, ge=1)
    share: float = 0.5


class Outer(Strict):
    inner: Inner = Inner()
    several: list[Inner] | None = None
    word: str

    @model_validator(mode="after")
    def _not_both(self) -> Any:
        if self.several and self.word == "one":
            raise Refused("Several are not one.", where="word", found=self.word)
        return self

    @field_validator("word")
    @classmethod
    def _short(cls, word: str) -> str:
        if len(word) > 3:
            raise Refused("Too long.", found=word, allowed="up to 3", next_step="cut it")
        return word


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["'word' is required", "here: word"]),
        ({"word": "a", "wrod": 1}, ["Unknown key 'wrod'", "here: wrod", "did you mean 'word'"]),
        ({"word": "a", "inner": {"sizes": 1}}, ["here: inner.sizes", "did you mean 'size'"]),
        ({"word": "a", "several": [{}, {"sze": 1}]}, ["several.1.sze", "did you mean 'size'"]),
        ({"word": "a", "inner": {"size": 0}}, ["here: inner.size", "found:   0", "greater"]),
        ({"word": "a", "inner": {"size": "1"}}, ["inner.size", "'1'", "a valid integer"]),
        ({"word": "a", "inner": {"size": True}}, ["inner.size", "True"]),
        ({"word": "a", "inner": {"share": "x"}}, ["inner.share", "'x'", "a valid number"]),
        ({"word": 3}, ["here: word", "3", "a valid string"]),
        ({"word": "long"}, ["Too long.", "here: word", "long", "up to 3", "cut it"]),
        ({"word": "one", "several": [{}]}, ["Several are not one.", "here: word", "one"]),
        ({"word": "a", "inner": 3}, ["here: inner", "3"]),
        (3, ["here", "3"]),
    ],
)
def test_problems_are_explained(values: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        validate(Outer, values, "here")
    assert [word for word in words if word not in str(error.value)] == []


def test_below_a_table_keys_follow_a_dot() -> None:
    with pytest.raises(UserError, match=r"here\[0\]\.inner\.size"):
        validate(Outer, {"word": "a", "inner": {"size": 0}}, "here[0]", below=".")


def test_what_is_valid_is_frozen() -> None:
    made = validate(Outer, {"word": "a", "inner": {"share": 1}}, "here")
    assert made.inner == Inner(share=1.0)
    with pytest.raises(ValueError, match="frozen"):
        made.word = "b"


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"a = \n", "line 1"), (b"\xff\xfe", "utf-8"), (b"a = 1\na = 2\n", "line 2")],
)
def test_damaged_toml_is_explained(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_toml(path)
    assert str(path) in str(error.value)
    assert word in str(error.value)


def test_missing_toml_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_toml(tmp_path / "x.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read_toml(tmp_path)


@pytest.mark.parametrize("kind", ["sweeps", "activations"])
def test_built_in_names_and_paths_are_found(kind: Any, tmp_path: Path) -> None:
    for name in builtin.names(kind):
        path = builtin.find(kind, name)
        assert path.is_file()
        assert builtin.find(kind, path) == path
    with pytest.raises(UserError, match=r"Unknown .*\n.*nothing_like_it\n.*a path that ends in"):
        builtin.find(kind, "nothing_like_it")
    with pytest.raises(UserError, match="No such file in"):
        builtin.find(kind, tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"rows": "9"}, ["rows", "'9'"]),
        ({"rows": True}, ["rows", "True"]),
        ({"held_out": 1.0}, ["held_out", "1.0"]),
        ({"hooks": []}, ["hooks"]),
        ({"hooks": ["a", 3]}, ["hooks.1", "3"]),
        ({"dtype": "int8"}, ["dtype", "'int8'", "'bfloat16'"]),
        ({"chunk_rows": 5}, ["chunk_rows", "at least one context"]),
        ({"name": "a/b"}, ["name", "'a/b'"]),
        ({"contxt": 5}, ["contxt", "did you mean 'context'"]),
    ],
)
def test_bad_recipes_are_explained(overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("embedded", overrides)
    assert [word for word in ["embedded.toml", *words] if word not in str(error.value)] == []
