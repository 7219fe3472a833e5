"""What a sweep file says of a start: both forms, and every mistake named."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ensemble_sae.config.start import KINDS, Start
from ensemble_sae.errors import UserError


def test_both_forms() -> None:
    assert Start() == Start("signature", 0.05)
    for kind in KINDS:
        assert Start.parse(kind, "x") == Start.parse({"kind": kind}, "x") == Start(kind)
    assert Start.parse({"kind": "centroid", "rare": 0.2}, "x") == Start("centroid", 0.2)
    whole = Start.parse({"kind": "outlier", "rare": 1}, "x")
    assert (whole.rare, type(whole.rare)) == (1.0, float)


def test_which_look_at_rows() -> None:
    looking = [kind for kind in KINDS if Start(kind).needs_rows]
    assert looking == ["rows", "svd", "mean", "centroid", "outlier"]


def test_in_a_word_or_two() -> None:
    texts = [Start("centroid", 0.2).text, Start("mean").text, Start("svd").text, Start().text]
    assert texts == ["centroid:0.2", "mean:0.05", "svd", "signature"]


@pytest.mark.parametrize(
    ("value", "where", "found", "allowed"),
    [
        ("ortogonal", "s.toml: start", "'ortogonal'", "did you mean 'orthogonal'?"),
        ("", "s.toml: start", "''", "centroid, kaiming"),
        ({"kind": "cemtroid"}, "s.toml: start", "'cemtroid'", "did you mean 'centroid'?"),
        ({"kind": ["rows"]}, "s.toml: start", "['rows']", "orthogonal"),
        ({"kind": "mean", "rar": 0.1}, "s.toml: start.rar", "0.1", "did you mean 'rare'?"),
        ({"kind": "mean", 3: 0.1}, "s.toml: start.3", "0.1", "kind, rare"),
        ({"rare": 0.1}, "s.toml: start", "{'rare': 0.1}", "a kind as text"),
        ({}, "s.toml: start", "{}", "a kind as text"),
        (0.1, "s.toml: start", "0.1", "a kind as text"),
        (None, "s.toml: start", "None", "a kind as text"),
        (["rows"], "s.toml: start", "['rows']", "a kind as text"),
        ({"kind": "rows", "rare": 0.1}, "s.toml: start.rare", "0.1", "mean, centroid, outlier"),
        ({"kind": "signature", "rare": 0.1}, "s.toml: start.rare", "0.1", "centroid"),
        *[
            ({"kind": "mean", "rare": rare}, "s.toml: start.rare", repr(rare), "above 0")
            for rare in (0, 0.0, -0.1, 1.01, float("nan"), float("inf"), True, "0.1", None, [0.1])
        ],
    ],
)
def test_mistakes_are_named(value: Any, where: str, found: str, allowed: str) -> None:
    with pytest.raises(UserError) as caught:
        Start.parse(value, "s.toml: start")
    assert caught.value.where == where
    assert caught.value.found == found
    assert allowed in str(caught.value.allowed)


def test_parsing_loads_nothing_heavy() -> None:
    code = (
        "import sys, ensemble_sae.config.start;"
        "print({'torch', 'sklearn', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
