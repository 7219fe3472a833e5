"""The scripts behind the tables of the pages, and that the zoo holds every signature."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import equal_l0
import resampling
import training
import zoo

from ensemble_sae.signatures import BUILTIN
from ensemble_sae.sweep import expand, load_sweep

HOOKS = {"blocks.2.hook_resid_pre": 128, "blocks.2.hook_mlp_out": 128}


def test_the_zoo_has_every_signature_once() -> None:
    sweep, where = load_sweep("zoo")
    assert sorted(m.signature for m in expand(sweep, HOOKS, where)) == sorted(BUILTIN)


def test_a_frontier_is_read_between_its_members_only() -> None:
    frontier = pd.DataFrame({"l0": [32.0, 8.0], "fvu": [0.1, 0.4]})
    assert equal_l0.fvu_at(frontier, 8) == pytest.approx(0.4)
    assert equal_l0.fvu_at(frontier, 16) == pytest.approx(0.2)  # the middle, on both log scales
    assert equal_l0.fvu_at(frontier, 32) == pytest.approx(0.1)
    assert math.isnan(equal_l0.fvu_at(frontier, 7))
    assert math.isnan(equal_l0.fvu_at(frontier, 64))


def test_the_best_of_a_column_is_bold() -> None:
    members = pd.DataFrame(
        {"signature": ["a", "a", "b", "b"], "l0": [8.0, 64, 8, 32], "fvu": [0.4, 0.1, 0.3, 0.2]}
    )
    lines = equal_l0.markdown(equal_l0.table(members)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `a`", "| `b`"]
    assert "0.400" in lines[2]
    assert "**0.300**" in lines[3]
    assert lines[3].endswith("|  |  |")  # b has no member at 48 and 64


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"signature": "tied", "fvu": 0.5, "l0": 20.0}, True),
        ({"signature": "tied", "fvu": 1.01, "l0": 20.0}, False),
        ({"signature": "tied", "fvu": 0.1, "l0": 256.0}, False),
        ({"signature": "tied", "fvu": 0.9, "l0": 0.2}, False),
        ({"signature": "rica", "fvu": 0.1, "l0": 256.0}, True),
    ],
)
def test_a_sensible_point(row: dict[str, object], expected: bool) -> None:
    assert zoo.sensible(row) is expected


def test_dead_shares_are_told_against_the_member_that_does_nothing() -> None:
    rows = [
        {"revive": "none", "resample": "none", "resample_power": 2.0, "dead": 0.4, "fvu": 0.1},
        {"revive": "none", "resample": "loss", "resample_power": 0.5, "dead": 0.1, "fvu": 0.09},
        {"revive": "aux_k", "resample": "none", "resample_power": 2.0, "dead": 0.2, "fvu": 0.11},
    ]
    lines = resampling.markdown(rows).splitlines()[2:]
    assert lines[0] == "| nothing | 40.0% | 0.1000 | 1.00x | 1.000x |"
    assert '`resample = "loss"`, power 0.5' in lines[1]
    assert lines[1].endswith("| 0.25x | 0.900x |")
    assert '`revive = "aux_k"`' in lines[2]


def test_kernels_are_compared_member_by_member() -> None:
    tables = [pd.DataFrame({"fvu": fvu, "l0": [4.0, 0.0, 2.0]}) for fvu in ([0.1, 0.2, 0.4],) * 2]
    tables[1]["fvu"] *= [1.01, 0.98, 1.03]
    tables[1]["l0"] += [0.4, 1.0, 0.0]
    runs = [
        {"name": name, "seconds": seconds, "gflop_per_s_before": 1.0, "table": table}
        for name, seconds, table in zip(("dense", "auto"), (90.0, 45.0), tables, strict=True)
    ]
    first, second = training.compared("mine", runs)
    assert second["speedup"] == 2
    assert second["fvu"] == pytest.approx(0.02)
    assert second["l0"] == pytest.approx(0.05)  # of the two that have an L0
    assert training.line(first) == "| `mine` | 3 | dense | 90 s | 1.00x |  |  |"
    assert training.line(second) == "| `mine` | 3 | auto | 45 s | 2.00x | 2% | 5% |"
