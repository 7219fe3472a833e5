"""Findings in the members' table: empty when all is well, a column when it is not."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from ensemble_sae.engine import printed, results
from ensemble_sae.sweep import groups_of
from ensemble_sae.sweep.members import expand
from ensemble_sae.sweep.schema import Sweep

FINDINGS = ("min_cosine", "axis_share", "ultra_low_density", "flags")
WELL = {"fvu": 0.1, "l0": 5.0, "dead": 0.0, "min_cosine": -0.4, "axis_share": 0.25}


@pytest.fixture
def members():
    grid = {"signature": ["tied"], "l1": [1e-4, 1e-3], "dict_ratio": [2]}
    values = {"name": "flags", "activations": {"store": "rows"}, "grid": [grid]}
    return expand(Sweep.model_validate(values), {"rows": 8})


def tabulate(members, evaluated):
    status = {member.id: "trained" for member in members}
    table = results.make_table(members, groups_of(members), status, evaluated)
    out = io.StringIO()
    printed.print_table(table, Console(file=out, width=200))
    return table, out.getvalue()


def test_a_flagged_member_is_named(members) -> None:
    bad = {**WELL, "min_cosine": -0.99, "ultra_low_density": 0.5}
    rows = [
        {"id": 0, **WELL, "ultra_low_density": 0.125, "flags": ""},
        {"id": 1, **bad, "flags": "opposite pairs, ultra-low density"},
    ]
    table, text = tabulate(members, rows)
    assert table["flags"].tolist() == ["", "opposite pairs, ultra-low density"]
    assert table["min_cosine"].tolist() == [-0.4, -0.99]
    head, *_ = [line for line in text.splitlines() if "FVU" in line]
    assert head.split() == ["id", "l1", "L0", "FVU", "dead", "flags"]
    assert "opposite pairs, ultra-low density" in text
    assert "nan" not in text


def test_no_column_when_all_is_well(members) -> None:
    rows = [{"id": i, **WELL, "ultra_low_density": i / 8, "flags": ""} for i in range(2)]
    _, text = tabulate(members, rows)
    assert not any(name in text for name in FINDINGS)


def test_members_that_were_not_evaluated(members) -> None:
    table, text = tabulate(members, [{"id": 0}, {"id": 1}])
    assert table["flags"].tolist() == ["", ""]
    assert all(math.isnan(value) for name in FINDINGS[:3] for value in table[name])
    assert not any(name in text for name in FINDINGS)
    half, _ = tabulate(members, [{"id": 1, **WELL, "flags": "collapsed"}])
    assert half["flags"].tolist() == ["", "collapsed"]
