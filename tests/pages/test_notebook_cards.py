"""What a notebook shows: cards with everything escaped, the frontier as a figure, progress."""

from __future__ import annotations

import io
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import ensemble_sae
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.engine import display
from ensemble_sae.engine.run_sweep import run_sweep
from ensemble_sae.errors import UserError
from ensemble_sae.files import write_json
from ensemble_sae.inspection.examples import Contexts, Examples
from ensemble_sae.inspection.feature import Features
from ensemble_sae.metrics.reconstruction import pareto as by_hand
from ensemble_sae.pages import live, notebook, pareto
from ensemble_sae.run import Layout, Run

EVIL = "<script>alert('&')</script>"
VOID = {"br"}


class Checked(HTMLParser):
    """Every element is closed in order, none of them runs or loads anything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "img", "link")
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


def legible_anywhere(text: str) -> None:
    """No ink and no background but transparent ones."""
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b|(?<!-)color:|\bwhite;|black", text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("cards")
    draw = torch.Generator().manual_seed(0)
    for hook in ("a", "b"):
        rows = torch.randn(1024, 6, generator=draw)
        ensemble_sae.ChunkStore.write(folder / "s" / hook, rows, chunk_rows=512, held_out=0.2)
    return run_sweep(
        [
            {"signature": signature, "hook": hook, "dict_ratio": ratio, "l1": l1}
            for signature in ("tied", "untied")
            for hook in ("a", "b")
            for ratio in (1, 2)
            for l1 in (1e-3, 3e-2)
        ],
        activations={"store": str(folder / "s")},
        train={"batch_size": 64, "lr": 1e-2},
        run=folder / "run",
        devices="cpu:1",
        threads=1,
    )


@pytest.fixture
def evaluated(run: Run, tmp_path: Path) -> Run:
    """A copy with the files of an evaluation of all members but one, made by hand."""
    import shutil

    shutil.copytree(run.path, tmp_path / "run")
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir()
    known = {"ce_clean": 2.0, "ce_zero": 9.0, "ce_mean": 7.0}
    settings = {"model": EVIL, "dataset": EVIL, "rows": 1000, "bands": []}
    write_json(folder / "settings.json", settings | {"references": {EVIL: known}})
    ids = list(run.members.index[:-1])
    rows = pd.DataFrame({"member": ids, "features": "all", "hook": EVIL})
    for number, name in enumerate(("ce", "ce_recovered", "kl", "perplexity", "fvu", "l0")):
        rows[name] = np.linspace(0.1, 0.9, len(ids)) + number
    rows.to_parquet(folder / "table.parquet")
    return ensemble_sae.load(tmp_path / "run")


def test_a_run_tells_what_it_is(run: Run):
    text = run._repr_html_()
    said = Checked(text).said
    legible_anywhere(text)
    assert "16 members" in said
    assert "finished" in said
    assert "tied (8), untied (8)" in said
    assert "dict_ratio (1, 2); l1 (0.001, 0.03)" in said
    best = run.members[run.members["pareto"]]
    assert f"{len(best)} on the frontier" in said
    assert best["name"].iloc[0] in said
    assert "run.plot_pareto()" in said
    assert "CE recovered" not in said
    member = int(re.search(r"run\.sae\((\d+)\)", said)[1])
    assert member in best.index


def test_an_unfinished_run_has_a_card_and_no_figure(run: Run, tmp_path: Path):
    import shutil

    shutil.copytree(run.path, tmp_path / "run")
    Layout(tmp_path / "run").table.unlink()
    early = ensemble_sae.load(tmp_path / "run")
    assert "16 members" in Checked(early._repr_html_()).said
    with pytest.raises(UserError, match="not measured") as caught:
        early.plot_pareto()
    assert "--resume" in caught.value.next_step


def test_a_member_tells_what_is_not_as_usual(run: Run):
    text = run.sae(3)._repr_html_()
    said = Checked(text).said
    legible_anywhere(text)
    assert run.configurations[3].name in said
    assert "l1 0.03" in said
    assert "decoder [12, 6]" in said
    assert "[..., 6] -> [..., 12]" in said
    assert "revive" not in said


def test_an_evaluation_is_a_table_and_escaped(evaluated: Run):
    text = evaluated.evaluation._repr_html_()
    said = Checked(text).said
    legible_anywhere(text)
    assert EVIL in said
    assert "8 of 15 members" in said
    assert "9.000" in said
    assert "CE recovered" in Checked(evaluated._repr_html_()).said


def made_up(sae: Any) -> Features:
    """Two features of which the second never fires; words that would like to run."""
    words = {0: EVIL, 1: " a\n", 2: "b"}
    tokens = torch.tensor([[[0, 1, 2], [2, 2, 0]], [[0, 0, 0], [0, 0, 0]]], dtype=torch.int32)
    values = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 0.1, 0.0]], [[0.0] * 3] * 2])
    found = Contexts(tokens, values, torch.tensor([[4, 5], [-1, -1]]))
    table = pd.DataFrame(
        {
            **{"density": [0.25, 0.0], "mean": [1.0, 0.0], "max": [2.0, 0.0]},
            **{"promoted": [[EVIL, "b"], []], "suppressed": [[], []]},
        }
    ).rename_axis("feature")
    examples = Examples(torch.arange(2), found, found, found)
    return Features(sae, {"tokens": 9, "fragments": 3, "dataset": EVIL}, table, examples, words)


def test_features_are_shown_and_never_run(run: Run):
    features = made_up(run.sae(0))
    text = features._repr_html_()
    said = Checked(text).said
    legible_anywhere(text)
    assert "1 of 2" in said
    assert "25.00%" in said
    one = features[0]._repr_html_()
    said = Checked(one).said
    legible_anywhere(one)
    assert said.count(EVIL) == 5  # promoted, and in each of two texts of both kinds
    assert " a\\n" in said
    assert f"<b>{notebook._safe(EVIL)}</b>" in one
    assert Checked(features[1]._repr_html_()).said.startswith("Feature 1")


def test_tokens_are_the_darker_the_stronger():
    text = notebook.shaded_tokens(["a", "b", "c", "d"], [0.0, 1.0, 2.0, 4.0], 4.0)
    shades = [float(x) for x in re.findall(r"rgba\(230, 159, 0, ([\d.]+)\)", text)]
    assert len(shades) == 3
    assert shades == sorted(shades)
    assert shades[-1] == notebook.DEEPEST
    assert text.startswith("a<span")
    assert re.findall(r"<b>(\w)</b>", text) == ["c", "d"]
    assert notebook.shaded_tokens(["a"], [0.0], 0.0) == "a"


# --- the figure


def points(figure: Any) -> dict[int, tuple[float, float]]:
    shown = [t for t in figure.data if t.mode == "markers" and t.customdata is not None]
    return {m: (x, y) for t in shown for m, x, y in zip(t.customdata, t.x, t.y, strict=True)}


def test_the_figure_has_every_member_and_a_frontier_of_each_hook(run: Run):
    figure, table = run.plot_pareto(), run.members
    assert points(figure) == {
        int(m): (row["l0"], row["fvu"]) for m, row in table.iterrows() if row["l0"] == row["l0"]
    }
    lines = {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data[:2]}
    for hook in ("a", "b"):
        own = table[(table["hook"] == hook) & table["pareto"]].sort_values("l0")
        assert lines[f"frontier, {hook}"] == list(zip(own["l0"], own["fvu"], strict=True))
    symbols = {t.name: t.marker.symbol for t in figure.data if t.marker.symbol}
    assert symbols == {"tied": "circle", "untied": "square"}
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "L0: active features per row"
    assert figure.layout.yaxis.title.text == "FVU: fraction of variance unexplained"
    assert list(figure.layout.coloraxis.colorbar.ticktext) == ["1", "2"]
    trace = next(t for t in figure.data if t.text)
    row = table.loc[trace.customdata[0]]
    told = trace.text[0]
    for said in (row["name"], f"l1: {row['l1']:.4g}", f"hook: {row['hook']}", "fvu: ", "l0: "):
        assert said in told
    assert "batch" not in told
    assert figure.to_html(include_plotlyjs=False)


def test_colours_of_words_and_of_other_numbers(run: Run):
    by_hook = run.plot_pareto(colour="hook")
    names = [t.name for t in by_hook.data if t.mode == "markers"]
    assert sorted(names) == ["tied, a", "tied, b", "untied, a", "untied, b"]
    assert len({t.marker.color for t in by_hook.data if t.mode == "markers"}) == 2
    by_l1 = run.plot_pareto(colour="l1")
    assert list(by_l1.layout.coloraxis.colorbar.ticktext) == ["0.001", "0.03"]


def test_ce_recovered_is_shown_where_it_is_known(run: Run, evaluated: Run):
    with pytest.raises(UserError, match="not evaluated") as caught:
        run.plot_pareto(y="ce_recovered")
    assert "ensemble_sae.evaluate" in caught.value.next_step
    figure = evaluated.plot_pareto(y="ce_recovered")
    assert len(points(figure)) == 15
    assert figure.layout.title.text == "15 members, 1 without numbers left out"
    with pytest.raises(UserError, match="no column 'fuv'"):
        run.plot_pareto(y="fuv")
    with pytest.raises(UserError, match="needs numbers"):
        run.plot_pareto(y="name")


def test_the_frontier_is_what_nobody_beats():
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"l0": draw.integers(1, 20, 60), "fvu": draw.integers(1, 20, 60)})
    table = table.astype(float).assign(hook="a", status="trained")
    table.loc[3, "fvu"] = math.nan
    table.loc[4, ["l0", "fvu", "status"]] = [0.5, 0.5, "frozen at step 3"]
    whole = table.drop(index=4)
    chosen = whole.index[by_hand(whole["fvu"].tolist(), whole["l0"].tolist())]
    assert sorted(pareto.frontier(table).index) == sorted(chosen)
    up = table.assign(ce_recovered=-table["fvu"])
    assert sorted(pareto.frontier(up, y="ce_recovered").index) == sorted(chosen)


def test_a_name_is_no_markup_in_a_figure(run: Run):
    table = run.members.assign(name=EVIL)
    figure = pareto.plot(table, varied=["l1"])
    assert "<script>" not in figure.to_json()


# --- progress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook would show; each entry is one picture."""
    pictures: list[str] = []

    class Handle:
        def update(self, html: Any) -> None:
            pictures.append(html.data)

    def show(html: Any, display_id: bool) -> Handle:
        assert display_id
        pictures.append(html.data)
        return Handle()

    fake = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    inner = SimpleNamespace(HTML=lambda data: SimpleNamespace(data=data), display=show)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    return pictures


def test_a_bar_in_a_notebook_ends_full(shown: list[str]):
    with live.progress() as show:
        assert shown == []
        for done in range(1, 101):
            show(done, 100, f"<{done}>")
    assert 2 <= len(shown) < 50  # not one for every call
    assert 'value="100" max="100"' in shown[-1]
    assert "&lt;100&gt;" in shown[-1]


def test_outside_a_notebook_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    assert not live.in_notebook()
    with live.progress("first") as show:
        show(1, 1, "done")
    assert capsys.readouterr() == ("", "")
    assert type(display.default_observer()) is Observer


def test_a_sweep_in_a_notebook_has_a_panel_that_ends_with_all_rows(shown: list[str]):
    watching = display.default_observer()
    assert isinstance(watching, display.Display)
    watching.console = Console(file=io.StringIO(), force_jupyter=False)
    watching.started(SimpleNamespace(tasks=[]), rows=1000, work=1000, done=0)
    watching.progress(400, 4000, {})
    watching.progress(600, 6000, {})
    watching.evaluating()
    watching.ended()
    assert "starting the workers" in shown[0]
    assert "1,000 of 1,000 rows" in shown[-1]
    for picture in shown:
        Checked(picture)
