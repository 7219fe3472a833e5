"""Pages and figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ensemble_sae.errors import UserError
from ensemble_sae.pages import figures
from ensemble_sae.pages.page import Page

PNG = b"\x89PNG\r\n"


def test_a_page_holds_what_it_was_given(tmp_path: Path):
    page = Page("A study", "What was asked.")
    page.heading("First")
    page.points(["one", "two"])
    table = pd.DataFrame({"a": [0.12345, np.nan], "b": ["x", None]}, index=["one", "two"])
    page.table(table.rename_axis("name"), "A caption.", {"a": "{:.2f}"})
    with figures.figure(1, 1, (3, 2)) as (figure, axes):
        figures.curves(axes[0, 0], [("c", [1, 2], [3, 4])], title="t", x="x", y="y", log="x")
    page.figure("curve", figure, "How to read it.")
    page.numbers("n", [1, 2])
    written = page.write(tmp_path / "out")
    text = written.read_text()
    for said in ("<h2>First</h2>", "<li>two</li>", "<td>0.12</td>", "<td>–</td>", "A caption."):
        assert said in text
    assert 'src="curve.png"' in text
    assert (tmp_path / "out/curve.png").read_bytes().startswith(PNG)
    assert json.loads((tmp_path / "out/numbers.json").read_text()) == {"n": [1, 2]}


def test_what_is_given_is_shown_and_never_run(tmp_path: Path):
    evil = "<script>alert(1)</script>"
    page = Page(evil, evil)
    page.heading(evil)
    page.text(evil)
    page.points([evil])
    page.table(pd.DataFrame({evil: [evil]}, index=[evil]), evil, {})
    text = page.write(tmp_path).read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 8


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        Page("t", "a").write(tmp_path / "file")


def test_heat_maps_mark_the_best_of_each_column():
    grid = pd.DataFrame([[0.1, 0.9], [0.5, np.nan]], index=[1e-3, 1e-2], columns=[1, 2])
    with figures.figure(1, 1, (4, 3)) as (figure, axes):
        figures.heat_map(axes[0, 0], grid, "t", best=np.nanargmax)
    place = axes[0, 0]
    assert sorted(text.get_text() for text in place.texts) == ["0.10", "0.50", "0.90"]
    frames = [patch.get_xy() for patch in place.patches]
    assert frames == [(-0.5, 0.5), (0.5, -0.5)]
    assert [label.get_text() for label in place.get_yticklabels()] == ["0.001", "0.01"]
    assert figure.axes


def test_without_matplotlib_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="matplotlib"):
        figures.matplotlib()


def test_numbers_are_plain_json(tmp_path: Path):
    page = Page("t", "a")
    page.numbers("n", {"a": np.float64(2), "b": [float("nan"), np.inf, 1], 3: np.arange(2)})
    page.write(tmp_path)
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found == {"n": {"a": 2, "b": [None, None, 1], "3": [0, 1]}}
