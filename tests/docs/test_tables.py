"""The tables of the documentation equal the code: names, defaults, choices."""

from __future__ import annotations

import ast
import re
from typing import Any, get_args

import pytest
from pages import ROOT, Page, section

from ensemble_sae.config import start
from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.config.recipe import Recipe
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.kernels.forms import FORMS
from ensemble_sae.metrics.detectors import FLAGS
from ensemble_sae.signatures import BUILTIN, frame, hyperparameters, revival
from ensemble_sae.signatures.limits import CHOICES
from ensemble_sae.sweep.schema import Activations, Report, Train
from ensemble_sae.train.optimiser import Kind

OF_A_SWEEP = (
    *("optimiser", "betas", "eps", "weight_decay", "momentum"),
    *("resample_rows", "init"),
)


@pytest.mark.parametrize(
    ("file", "fields", "heading"),
    [
        ("sweep_files.md", Activations.model_fields, "`[activations]`"),
        ("sweep_files.md", Train.model_fields, "`[train]`"),
        ("sweep_files.md", Report.model_fields, "`[report]`"),
        ("training.md", Dynamics.model_fields, "Keys of a member"),
        ("training.md", {k: Train.model_fields[k] for k in OF_A_SWEEP}, "Keys of a sweep"),
        ("activations.md", Recipe.model_fields, "Keys of a recipe"),
        ("activations.md", SyntheticRecipe.model_fields, "Synthetic rows"),
    ],
)
def test_tables_of_keys_are_complete(file: str, fields: Any, heading: str) -> None:
    text = section(file, heading)
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*?) \|", text, re.MULTILINE))
    assert set(rows) == set(fields)
    for name, field in fields.items():
        shown = rows[name].strip("`")
        if field.is_required():
            assert shown in ("required", "the file's name"), name
        elif name == "hooks":
            assert shown == "both"
        elif field.default is None:
            assert shown == "none", name
        else:
            value = told(shown)
            same = tuple(value) if isinstance(value, list) else value
            assert same == field.default, name


def told(shown: str) -> Any:
    """A value as a page shows it."""
    return ast.literal_eval({"true": "True", "false": "False"}.get(shown, shown))


def names_in(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)


USUAL = frame.OPTIONS | revival.OPTIONS


def own_numbers(name: str) -> dict[str, Any]:
    options = getattr(BUILTIN[name], "OPTIONS", {})
    return {k: v for k, v in hyperparameters(BUILTIN[name]).items() if k not in options}


def test_the_signatures_are_all_there_with_their_numbers() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\|[^|]*\| ([^|]*) \|[^|]*\|[^|]*\|$",
        section("signatures.md", "The table"),
        re.MULTILINE,
    )
    assert [name for name, _ in rows] == list(BUILTIN)
    for name, shown in rows:
        found = {k: told(v) for k, v in re.findall(r"`(\w+)` \(([^)]+)\)", shown)}
        assert found == own_numbers(name), name
        assert [type(v) for v in found.values()] == [type(v) for v in own_numbers(name).values()]


def test_the_numbers_of_the_signatures_are_explained() -> None:
    text = section("signatures.md", "The numbers")
    explained = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(explained) == sorted({k for name in BUILTIN for k in own_numbers(name)})


def test_the_options_are_as_the_code_has_them() -> None:
    text = section("signatures.md", "Options")
    rows = re.findall(r"^\| `(\w+)` \|" + r"([^|]*)\|" * 4 + "$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(USUAL)
    has = {name: getattr(signature, "OPTIONS", {}) for name, signature in BUILTIN.items()}
    for option, allowed, default, others, missing in rows:
        assert told(default.strip(" `")) == USUAL[option], option
        value, _, who = others.partition(": ")
        found = dict.fromkeys(names_in(who), told(value.strip(" `")) if who else None)
        usual = USUAL[option]
        odd = {n: its[option] for n, its in has.items() if its.get(option, usual) != usual}
        assert found == odd, option
        assert names_in(missing) == [name for name in BUILTIN if option not in has[name]], option
        if option in CHOICES:
            assert tuple(re.findall(r'`"(\w+)"`', allowed)) == CHOICES[option]


def test_what_is_structure_is_said() -> None:
    """What splits stacks: the hyper-parameters whose default is no number with a fraction."""
    text = section("signatures.md", "What may differ within a stack")
    said = names_in(text.split("Structure: ")[1].split("\n\n")[0])
    every = {k: v for name in BUILTIN for k, v in hyperparameters(BUILTIN[name]).items()}
    assert sorted(said) == sorted(k for k, v in every.items() if type(v) in (bool, int, str))


def test_the_closed_forms_are_said() -> None:
    text = section("signatures.md", "What may differ within a stack").split("closed form")[1]
    assert {BUILTIN[n] for n in names_in(text) if n in BUILTIN} == set(FORMS)


def test_the_choices_of_the_training_are_all_there() -> None:
    kinds = re.findall(
        r"^\| `(\w+)` \|", section("training.md", "Where directions start"), re.MULTILINE
    )
    assert tuple(kinds) == start.KINDS
    optimisers = section("training.md", "Optimisers")
    assert tuple(re.findall(r"^\| `(\w+)` \|", optimisers, re.MULTILINE)) == get_args(Kind)


def test_the_flags_are_all_there() -> None:
    found = re.findall(r"^\| `([a-z -]+)` \| ", section("loading.md", "Members"), re.MULTILINE)
    assert tuple(name for name in found if name in FLAGS) == FLAGS


@pytest.mark.parametrize(
    ("file", "mark"),
    [
        ("signatures.md", "matched"),
        ("signatures.md", "zoo"),
        ("training.md", "resampling"),
        ("evaluation.md", "evaluation"),
        ("features.md", "features"),
        ("features.md", "lenses"),
        ("interpretation.md", "interpretation"),
    ],
)
def test_measured_tables_have_their_place(file: str, mark: str) -> None:
    lines = Page(ROOT / "docs" / file).text.splitlines()
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    assert lines.count(begin) == lines.count(end) == 1
    assert lines.index(begin) < lines.index(end)
