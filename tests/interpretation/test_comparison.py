"""Members and baselines side by side, from the run's folder to the printed table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from interpretation.chat_server import knowing, serving
from typer.testing import CliRunner

import ensemble_sae
from ensemble_sae import interpret
from ensemble_sae.inspection.request import Desk
from ensemble_sae.interpretation.subjects import BESIDE, default_members, of_baselines, sample

RESID = "blocks.2.hook_resid_pre"
SMALL = ["--fragments", "60", "--width", "16", "--features", "12"]


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(interpret.main)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


def test_members_beside_baselines(folder: Path, command) -> None:
    shown = command(folder, "--members", "0,2", *SMALL)
    assert shown.exit_code == 0, shown.output
    for name in ("0: tied", "2: untied", *BESIDE):
        assert name in shown.output
    table = json.loads((folder / "interpreted/by_rules.json").read_text())
    assert [name.partition(":")[0] for name in table] == ["0", "2", *BESIDE]
    for row in table.values():
        assert row["top_and_random n"] + row["top_and_random undefined"] <= 12
        if row["top_and_random n"] > 1:
            low, mean = row["top_and_random low"], row["top_and_random mean"]
            assert -1 <= low <= mean <= 1
    frame = pd.read_parquet(folder / "interpreted/2.parquet")
    assert len(frame) == 12
    assert set(frame.columns) == {"rule", "kind", "top", "random", "top_and_random"}
    assert frame["rule"].str.len().gt(0).all()


def test_nothing_is_sent_unless_asked(
    folder: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(knowing(len)) as server:
        asked = ["--base-url", server.url, "--explainer", "m", "--members", "0", *SMALL]
        shown = command(folder, *asked, "--no-baselines", "--price-in", "1", "--price-out", "2")
        assert shown.exit_code == 0, shown.output
        assert "requests, about" in shown.output
        assert "price:" in shown.output
        assert "Nothing was sent." in shown.output
        assert len(server.requests) == 0
        sent = command(folder, *asked, "--no-baselines", "--yes")
        assert sent.exit_code == 0, sent.output
        count = len(server.requests)
        assert count > 0
        again = command(folder, *asked, "--no-baselines", "--yes")
        assert again.exit_code == 0, again.output
        assert len(server.requests) == count
    assert (folder / "interpreted/by_models.json").is_file()
    for path in folder.rglob("*"):
        assert not path.is_file() or b"sk-none" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--members", "0-x"], "all, pareto, or ids"),
        (["--members", "77"], "There is no such member"),
        (["--explainer", "m"], "nobody to ask"),
        (["--base-url", "http://localhost:1/v1"], "Which model explains?"),
        (["--base-url", "nowhere", "--explainer", "m"], "The endpoint needs an address"),
    ],
)
def test_what_makes_no_sense_is_said(folder: Path, command, arguments: list, said: str) -> None:
    shown = command(folder, *arguments, *SMALL)
    assert shown.exit_code == 2
    assert said in shown.output


def test_baselines_read_the_rows_of_the_hook(folder: Path) -> None:
    run = ensemble_sae.load(folder)
    desk = Desk(run, 40, 16)
    found = dict(of_baselines(desk, RESID, ("neuron_basis",), lambda what, done, total: None))
    features = found["neuron_basis"]
    from ensemble_sae.lm.load import run_hooks

    tokens = features.examples.top.tokens[5, :1].long()
    row = run_hooks(desk.bridge, tokens, [RESID])[RESID][0, 1:, 5]
    torch.testing.assert_close(
        features.examples.top.activations[5, 0, 1:], row, rtol=1e-4, atol=1e-3
    )


def test_features_are_drawn_among_those_that_were_active(folder: Path) -> None:
    run = ensemble_sae.load(folder)
    features = ensemble_sae.features(run, 2, count=60, width=16)
    chosen = sample(features, 20, 0)
    assert torch.equal(chosen, chosen.unique())
    assert set(chosen.tolist()) <= set(features.alive.tolist())
    assert torch.equal(chosen, sample(features, 20, 0))
    assert not torch.equal(chosen, sample(features, 20, 1))


def test_the_members_that_are_chosen_are_of_the_frontier(folder: Path) -> None:
    run = ensemble_sae.load(folder)
    chosen = default_members(run)
    assert run.members.loc[chosen, "pareto"].all()
    assert len(chosen) == min(5, run.members["pareto"].sum())
