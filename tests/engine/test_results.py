"""The members' table: how trainings ended, and columns that not every member has."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from ensemble_sae.engine import printed, results
from ensemble_sae.run import Layout
from ensemble_sae.sweep import Member, Sweep, expand, groups_of


def members(*grids: dict[str, Any], **train: Any) -> list[Member]:
    grid = [{"n_dict": 16, "hook": "a"} | own for own in grids]
    values = {"name": "r", "activations": {"store": "s"}, "train": train, "grid": grid}
    return expand(Sweep.model_validate(values), {"a": 8, "b": 6})


def table(found: list[Member], *rows: dict[str, Any]) -> pd.DataFrame:
    evaluated = [{"id": i, "fvu": 0.5, "l0": 3.0, "dead": 0.0} | row for i, row in enumerate(rows)]
    status = results.statuses(found, {}, evaluated)
    return results.make_table(found, groups_of(found), status, evaluated)


def shown(found: pd.DataFrame) -> str:
    out = io.StringIO()
    printed.print_table(found, Console(file=out, width=250))
    return out.getvalue()


def test_how_trainings_ended_is_told_everywhere_alike(tmp_path: Path) -> None:
    three = members({"signature": "tied", "l1": [0.1, 0.2, 0.3]})
    evaluated = [{"id": 0}, {"id": 1, "finished_at": 24}, {"id": 2}]
    status = results.statuses(three, {2: 7}, evaluated)
    ended = "finished at step 24: all its features are frozen"
    assert status == {0: "trained", 1: ended, 2: "frozen at step 7"}
    found = results.make_table(three, groups_of(three), status, evaluated)
    assert found["status"].tolist() == list(status.values())
    results.write_members(Layout(tmp_path), groups_of(three), status)
    written = json.loads(Layout(tmp_path).members.read_text())["members"]
    assert [entry["status"] for entry in written] == list(status.values())


def test_a_finished_member_may_be_the_best_one() -> None:
    two = members({"signature": "tied", "l1": [0.1, 0.2]})
    found = table(two, {"fvu": 0.4}, {"fvu": 0.2, "finished_at": 24})
    assert found["pareto"].tolist() == [False, True]
    assert "finished at step 24" in shown(found)


@pytest.mark.parametrize("train", [{}, {"ema": 0.0}, {"grad_clip": 1.0}])
def test_dynamics_that_nobody_changed_are_no_columns(train: dict[str, Any]) -> None:
    found = table(members({"signature": "tied"}, **train), {})
    assert {"lr", "grad_clip"} <= set(found.columns)
    assert not {"ema", "resample", "lr_schedule", "target_l0"} & set(found.columns)


def test_columns_that_not_every_member_has(tmp_path: Path) -> None:
    everything = members(
        {"signature": "tied", "whitening": [True, False], "centring": ["none", "mean"]},
        {"signature": "tied", "ema": [0.0, 0.9], "target_l0": 4},
        {"signature": ["topk", "matryoshka"], "k": 4, "init": ["rows", "mean"]},
        {"signature": "transcoder", "hook": "a -> b"},
    )
    found = table(everything, *[{"fvu": 0.1 * i + 0.1} for i in range(len(everything))])
    text = shown(found)
    for name in ("whitening", "centring", "init", "ema"):
        assert name in text
    results.write_table(Layout(tmp_path), found)
    read = pd.read_parquet(Layout(tmp_path).table)
    assert read["whitening"].tolist()[:4] == [True, True, False, False]
    assert read["whitening"].isna().tolist()[-1]
    assert read["target_l0"].tolist()[4:6] == [4.0, 4.0]
