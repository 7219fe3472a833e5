"""The report's figures and table in headless Chromium: drawn, filtered, clicked and saved."""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from in_browser import (
    Open,
    copied,
    drawn,
    listed,
    of_hash,
    pick,
    place_of,
    shown,
    through,
    traces,
    until,
)
from page_parts import LOOKED

import ensemble_sae
from ensemble_sae.run import Run

FIGURES = {
    *("pareto", "heat", "training", "dead", "densities", "neighbours", "histories"),
    *("by-position", "by-frequency"),
}


# What is there


def test_every_figure_is_drawn_and_told_how_to_read(opened: Open) -> None:
    page = opened()
    through(page)
    found = {
        f.get_attribute("id").removeprefix("figure-")
        for f in page.locator("section > figure").all()
    }
    assert found == FIGURES
    for name in FIGURES:
        figure = page.locator(f"#figure-{name}")
        assert len(figure.locator("figcaption").text_content()) > 60
        assert figure.locator("h3").text_content()
        titles = figure.locator(".plot").evaluate(
            "p => [p.layout.xaxis.title.text, p.layout.yaxis.title.text]"
        )
        assert all(titles), (name, titles)
        assert figure.locator("svg .xtitle").text_content() == titles[0]
        assert figure.locator("svg .ytitle").text_content() == titles[1]
    assert page.locator("#loading").count() == 0
    assert page.locator("#facts dt").count() >= 9
    assert "5 of 6 members are evaluated" in page.locator("#notes").text_content()


def test_the_feature_histogram_says_how_to_read_it_and_can_be_saved(opened: Open) -> None:
    page = opened(hash=f"#member={LOOKED[0]}&feature=1")
    room = page.locator("#feature figure")
    assert room.locator("figcaption").text_content()
    assert room.get_by_role("button", name="PNG").count() == 1


def test_hover_shows_the_whole_configuration(opened: Open, reported: Run) -> None:
    page = opened()
    texts = {
        m: t
        for trace in traces(page)
        if trace.get("text")
        for m, t in zip(trace["customdata"], trace["text"], strict=True)
    }
    for member, row in reported.members.iterrows():
        for value in (
            row["name"],
            row["signature"],
            row["hook"].replace(">", "&gt;"),
            f"member {member}",
        ):
            assert value.replace("->", "-&gt;") in texts[member]
        for word in ("ratio", "l1", "FVU", "L0", "dead", "features", "lr", "seed"):
            assert word in texts[member], word


def test_pictures_of_every_figure(opened: Open, tmp_path: Path) -> None:
    page = opened()
    for name in sorted(FIGURES):
        figure = drawn(page, name)
        for kind in ("PNG", "SVG"):
            with page.expect_download() as waited:
                figure.get_by_role("button", name=f"as {kind}").click()
            path = tmp_path / waited.value.suggested_filename
            waited.value.save_as(path)
            assert path.name == f"run-{name}.{kind.lower()}"
            saved = path.read_bytes()
            if kind == "PNG":
                assert saved.startswith(b"\x89PNG\r\n\x1a\n")
                assert int.from_bytes(saved[16:20]) == 2000
            else:
                assert ElementTree.fromstring(saved).tag.endswith("svg")
            assert len(saved) > 5_000


# Members


def test_the_frontier_joins_the_pareto_best(opened: Open, reported: Run) -> None:
    page = opened()
    found = traces(page)
    lines = [t for t in found if t["mode"] == "lines"]
    assert len(lines) == reported.members["hook"].nunique()
    joined = {(x, y) for t in lines for x, y in zip(t["x"], t["y"], strict=True)}
    best = reported.members[reported.members["pareto"]]
    expected = {
        (float(f"{row['l0']:.5g}"), float(f"{row['fvu']:.5g}")) for _, row in best.iterrows()
    }
    assert joined == expected
    assert {
        len(t["marker"]["opacity"]) > 0
        for t in found
        if t["mode"] == "markers" and t.get("customdata")
    } == {True}


def test_the_frontier_knows_in_which_direction_each_metric_is_better(
    opened: Open, reported: Run
) -> None:
    """With what is better when it is higher across, no member on the line is beaten in both."""
    page = opened()
    pick(page.locator("#figure-pareto"), "across", "ce_recovered")
    found = traces(page)
    every = {
        m: (x, y)
        for t in found
        if t["mode"] == "markers" and t.get("customdata")
        for m, x, y in zip(t["customdata"], t["x"], t["y"], strict=True)
    }
    hooks = reported.members["hook"]
    expected = {
        (x, y)
        for m, (x, y) in every.items()
        if not any(
            hooks[other] == hooks[m] and a >= x and b <= y and (a, b) != (x, y)
            for other, (a, b) in every.items()
        )
    }
    joined = {
        (x, y) for t in found if t["mode"] == "lines" for x, y in zip(t["x"], t["y"], strict=True)
    }
    assert joined == expected


def test_filters_hold_for_figures_and_table(opened: Open, reported: Run) -> None:
    page, table = opened(), reported.members
    page.locator("#filters").evaluate("one => { one.open = true }")
    count, everyone = page.locator("#filters summary"), set(table.index)
    assert "6 of 6 members" in count.text_content()
    assert shown(page) == set(listed(page)) == everyone
    for axis in ("signature", "hook", "dict_ratio", "l1"):
        boxes = page.locator(f"[data-axis={axis}] input")
        values = sorted(table[axis].unique())
        assert boxes.count() == len(values)
        for place, value in enumerate(values):
            boxes.nth(place).uncheck()
            expected = set(table[table[axis] != value].index)
            assert f"{len(expected)} of 6 members" in count.text_content()
            assert set(listed(page)) == shown(page) == expected
            boxes.nth(place).check()
    assert shown(page) == everyone
    page.locator("[data-axis=l1] input").nth(1).uncheck()
    page.locator("[data-axis=signature] input").nth(0).uncheck()
    both = set(table[(table["l1"] < 5e-3) & (table["signature"] != "tied")].index) - set(
        table[table["signature"] == sorted(table["signature"].unique())[0]].index
    )
    assert set(listed(page)) == shown(page) == both
    page.get_by_role("button", name="Show all").click()
    assert set(listed(page)) == shown(page) == everyone
    assert page.locator("#filters input:not(:checked)").count() == 0
    assert page.get_by_role("button", name="Show all").is_disabled()


def test_none_then_one_shows_that_one(opened: Open, reported: Run) -> None:
    page = opened()
    drawn(page, "pareto")
    page.locator("[data-axis=signature] .none").click()
    assert listed(page) == []
    page.wait_for_selector("#figure-pareto .empty:not([hidden])")
    page.locator("[data-axis=signature] label", has_text="transcoder").locator("input").check()
    assert set(listed(page)) == shown(page) == {5}
    page.get_by_role("button", name="Show all").click()
    assert len(listed(page)) == 6


def test_a_click_on_a_point_chooses_the_member(opened: Open, reported: Run) -> None:
    page = opened()
    for member in (2, 5):
        page.locator("#figure-pareto .plot").scroll_into_view_if_needed()
        page.mouse.click(*place_of(page, member))
        until(lambda: of_hash(page)["member"] == str(member), "it is chosen")  # noqa: B023
        assert reported.members.loc[member, "name"] in page.locator("#chosen h3").text_content()
        assert page.locator("#table tr.on").get_attribute("data-id") == str(member)
        ring = next(t for t in traces(page) if (t["marker"] or {}).get("symbol") == "circle-open")
        assert ring["x"] == [pytest.approx(reported.members.loc[member, "l0"], rel=1e-4)]


def test_arrow_keys_go_along_the_points(opened: Open, reported: Run) -> None:
    page = opened()
    order = reported.members.sort_values("l0").index.tolist()
    drawn(page, "pareto").locator(".plot").focus()
    for key, expected in (
        *(("Home", order[0]), ("ArrowRight", order[1]), ("ArrowRight", order[2])),
        *(("ArrowLeft", order[1]), ("End", order[-1]), ("ArrowRight", order[-1])),
    ):
        page.keyboard.press(key)
        assert of_hash(page)["member"] == str(expected)
    assert reported.members.loc[order[-1], "name"] in page.locator("#chosen").text_content()
    assert page.evaluate("document.activeElement.matches('#figure-pareto .plot')")


def test_the_keyboard_reaches_filters_and_works_them(opened: Open) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("Boolean(document.activeElement.closest('[data-axis] .ticks'))"):
            break
    else:
        pytest.fail("no filter within 40 stops")
    page.keyboard.press("Space")
    assert "6 of 6" not in page.locator("#filters summary").text_content()
    page.keyboard.press("Space")
    assert "6 of 6" in page.locator("#filters summary").text_content()


def test_best_at_an_l0(opened: Open, reported: Run) -> None:
    page = opened()
    best = reported.members[reported.members["pareto"]]
    for wanted in (1, 30, 40, 500):
        page.locator("#wanted").fill(str(wanted))
        page.locator("#find").click()
        nearest = (best["l0"].map(math.log) - math.log(wanted)).abs().idxmin()
        assert of_hash(page)["member"] == str(nearest)
    page.locator("#wanted").fill("40")
    page.locator("#wanted").press("Enter")
    assert of_hash(page)["member"] == str((best["l0"].map(math.log) - math.log(40)).abs().idxmin())
    page.locator("#wanted").fill("-3")
    page.locator("#find").click()


def test_heat_maps_are_pivots(opened: Open, reported: Run) -> None:
    page = opened()
    drawn(page, "heat")
    figure = page.locator("#figure-heat")
    for metric, x, y in (
        ("fvu", "l1", "signature"),
        ("l0", "hook", "dict_ratio"),
        ("kl", "signature", "hook"),
    ):
        for key, value in (("across", x), ("up", y), ("colour", metric)):
            pick(figure, key, value)
        table = reported.members.join(reported.evaluation.members[["kl"]])
        for how in ("mean", "min", "max"):
            pick(figure, "several in a cell", how)
            found = traces(page, "heat")[0]["z"]
            expected = table.pivot_table(metric, y, x, how, dropna=False)
            expected = expected.reindex(sorted(table[y].unique()))[sorted(table[x].unique())]
            for line, row in zip(found, expected.to_numpy().tolist(), strict=True):
                assert line == [None if math.isnan(v) else pytest.approx(v, rel=1e-3) for v in row]


# The table


def test_the_table_sorts_by_keyboard_and_searches(opened: Open, reported: Run) -> None:
    page, table = opened(), reported.members
    assert listed(page) == table.sort_values("l0").index.tolist()
    head = page.locator("#table th", has_text=re.compile("^FVU$"))
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert listed(page) == table.sort_values("fvu").index.tolist()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert listed(page) == table.sort_values("fvu", ascending=False).index.tolist()
    assert page.locator("#table [aria-sort=ascending]").count() == 0
    page.locator("#search").fill("Untied r=0.875")
    assert set(listed(page)) == {2, 3}
    page.locator("#search").fill("pareto transcoder")
    assert listed(page) == [5]
    page.locator("#search").fill("no such thing")
    assert listed(page) == []
    page.locator("#search").fill("")
    page.locator("#table tr[data-id='4'] .link").click()
    assert of_hash(page)["member"] == "4"


def test_what_is_saved_is_the_table(opened: Open, reported: Run, tmp_path: Path) -> None:
    page = opened()
    page.locator("#search").fill("tied")
    for kind in ("csv", "json"):
        with page.expect_download() as waited:
            page.locator(f"#{kind}").click()
        waited.value.save_as(tmp_path / f"saved.{kind}")
    asked = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    found = pd.read_csv(tmp_path / "saved.csv").set_index("id")
    expected = reported.members[reported.members["signature"] != "transcoder"].sort_values("l0")
    assert found.index.tolist() == [one["id"] for one in asked] == expected.index.tolist()
    for name in ("fvu", "l0", "l1", "n_dict", "seed", "lr", "d_activation"):
        assert found[name].tolist() == pytest.approx(expected[name].tolist(), rel=1e-4)
        assert [one[name] for one in asked] == pytest.approx(expected[name].tolist(), rel=1e-4)
    assert found["name"].tolist() == expected["name"].tolist()
    assert (
        found["pareto"].tolist() == [one["pareto"] for one in asked] == expected["pareto"].tolist()
    )


def test_what_is_copied_runs(opened: Open, reported: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = functools.partial(ensemble_sae.features, count=60, width=16, per_document=2)
    monkeypatch.setattr(ensemble_sae, "features", looked, raising=False)
    page = opened(hash=f"#member={LOOKED[1]}&feature=7")
    text = copied(page, page.locator("#table tr[data-id='2']").get_by_role("button", name="Copy"))
    assert executed(text)["sae"].config == reported.configurations[2]
    text = copied(page, page.locator("#chosen .code button").last)
    assert "ensemble_sae.export" in text
    loads = page.locator("#chosen .code", has_text="import ensemble_sae").get_by_role("button")
    assert executed(copied(page, loads))["sae"].config == reported.configurations[LOOKED[1]]
    found = executed(copied(page, page.locator("#feature .code button")))
    assert found["feature"].index == 7


def executed(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(text, names)
    return names


def test_copied_commands_hold_for_folders_with_blanks(opened: Open, reported: Run) -> None:
    """The folder of this run has one."""
    page = opened(hash="#member=2")
    for text in page.locator("#chosen .code pre").all_text_contents():
        if text.startswith("python -m"):
            assert str(reported.path) in shlex.split(text.replace("\\\n", " ")), text
