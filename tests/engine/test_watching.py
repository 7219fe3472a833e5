"""What people see while a sweep trains and when it ends."""

from __future__ import annotations

import io
import math
import time

import pytest
from rich.console import Console

from ensemble_sae.dispatch.devices import Device
from ensemble_sae.dispatch.observer import Observer, Observers
from ensemble_sae.dispatch.planner import plan
from ensemble_sae.engine import printed, results
from ensemble_sae.engine.display import Display
from ensemble_sae.sweep import Sweep, expand, groups_of


@pytest.fixture
def sweep():
    values = {
        "name": "mine",
        "activations": {"store": "data/mine"},
        "grid": [{"signature": ["tied", "untied"], "dict_ratio": [2], "l1": [1e-3, 1e-2]}],
    }
    members = expand(Sweep.model_validate(values), {"hook": 8})
    groups = groups_of(members)
    devices = [Device("cpu", 0, 2**30, 1)]
    made = plan(
        groups,
        devices,
        batch_size=4,
        parameters=dict.fromkeys([g.name for g in groups], 9),
        chunk_bytes=0,
    )
    return members, groups, made


def console(terminal=False):
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100, color_system=None), out


def test_plain_lines_show_speed_ranges_and_frozen_members(sweep):
    members, _, made = sweep
    shown, out = console()
    display = Display(shown)
    display.started(made, rows=1000, work=1000, done=0)
    display.frozen(members[1], 812)
    display.progress(10, 40, {})
    time.sleep(0.01)
    display._last_line = -math.inf
    display.progress(90, 360, {"a": {"l0": [1.0, 7.5, math.nan], "fvu": [0.25, 0.5]}})
    display.ended()
    text = out.getvalue()
    assert f"member 1 ({members[1].name}): loss or gradient not finite at step 812" in text
    line = text.splitlines()[-1]
    assert "100 of 1,000 rows" in line
    assert "SAE-rows/s" in line
    assert "L0 1.0..7.5" in line
    assert "FVU 0.250..0.500" in line
    assert "1 frozen" in line
    assert " left" in line


def test_the_panel_on_a_terminal_names_every_group(sweep):
    _, _, made = sweep
    shown, out = console(terminal=True)
    display = Display(shown)
    display.started(made, rows=1000, work=1000, done=500)
    means = {"l0": [1.0, 2.0], "fvu": [0.1, 0.2]}
    display.progress(10, 40, {"tied-n16-m0": means, "untied-n16-m2": means})
    display.progress(10, 40, {})
    display._live.refresh()
    display.ended()
    assert "tied-n16" in out.getvalue()
    assert "520 of 1,000 rows" in out.getvalue()


def test_the_table_marks_the_frontier_and_shows_only_what_varies(sweep):
    members, groups, _ = sweep
    status = dict.fromkeys(range(4), "trained") | {3: "frozen at step 5"}
    evaluated = [
        {"id": 0, "fvu": 0.1, "l0": 5.0, "dead": 0.0},
        {"id": 1, "fvu": 0.4, "l0": 2.0, "dead": 0.25},
        {"id": 2, "fvu": 0.2, "l0": 6.0, "dead": 0.0},
        {"id": 3, "fvu": math.nan, "l0": math.nan, "dead": math.nan},
    ]
    table = results.make_table(members, groups, status, evaluated)
    assert table["pareto"].tolist() == [True, True, False, False]
    assert {"signature", "l1", "dict_ratio", "bias_decay", "fvu", "l0", "dead"} <= set(table)
    shown, out = console()
    printed.print_table(table, shown)
    text = out.getvalue()
    assert "bias decay" not in text  # the same everywhere
    assert "ratio" not in text
    assert "frozen at step 5" in text
    assert "Pareto-best: 2 of 4" in text
    assert "nan" not in text
    assert "25.0%" in text


def test_an_observer_that_fails_is_left_out_and_the_others_go_on():
    heard = []

    class Good(Observer):
        def evaluating(self):
            heard.append("evaluating")

        def warning(self, text):
            heard.append(text)

    class Bad(Observer):
        def evaluating(self):
            raise ValueError("no")

    both = Observers(Bad(), Good())
    both.evaluating()
    both.evaluating()
    assert heard.count("evaluating") == 2
    assert len([h for h in heard if "Bad failed and is left out" in h]) == 1
