"""The report's features in headless Chromium; hostile text; narrow, dark and nearly empty pages."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from in_browser import Open, drawn, hover_on, listed, of_hash, shown, through, until
from page_parts import HOSTILE, LOOKED, blocks

from ensemble_sae.reporting.page import page as made_page
from ensemble_sae.run import Run

# Features


def block(reported: Run, member: int) -> dict[str, Any]:
    return blocks((reported.path / "report" / "index.html").read_text())[f"features-{member}"]


def features(page: Any) -> list[int]:
    return [
        int(one)
        for one in page.locator("#feature-list button").evaluate_all(
            "b => b.map(o => o.dataset.feature)"
        )
    ]


def test_features_are_sorted_and_searched(opened: Open, reported: Run) -> None:
    page, table = opened(hash=f"#member={LOOKED[0]}&feature=0"), block(reported, LOOKED[0])
    page.wait_for_selector("#feature h3")
    numbers = table["numbers"]
    alive = [i for i, density in enumerate(numbers["density"]) if density > 0]
    rarely = {
        "score": table["score"],
        "density": numbers["density"],
        "ablation_kl": numbers["ablation_kl"],
        "steering_kl": numbers["steering_kl"],
        "max": numbers["max"],
    }
    assert f"{len(alive)} of 64 features" in page.locator("#feature-count").text_content()
    for name, values in rarely.items():
        page.locator("#feature-sort select").select_option(name)
        there = sorted((i for i in alive if values[i] is not None), key=lambda i: (-values[i], i))
        assert features(page) == (there + [i for i in alive if values[i] is None])[:40], name
    page.locator("#feature-sort select").select_option("index")
    assert features(page) == alive[:40]
    page.locator("#more").click()
    assert features(page) == alive[:120]
    token = table["words"][table["tokens"]["promoted"][alive[3]][0]].lower()
    page.locator("#feature-search").fill(token)
    found = features(page)
    assert alive[3] in found
    for feature in found:
        own = [w for lists in table["tokens"].values() for w in lists[feature]]
        own += [
            t[p]
            for kind in table["contexts"].values()
            for _, _, t, places, _ in kind[feature]
            for p in places
        ]
        words = " ".join([str(feature), table["rule"][feature], *(table["words"][w] for w in own)])
        assert token.strip() in words.lower()
    page.locator("#feature-search").fill("qqqqqq")
    assert features(page) == []
    assert "0 of 64" in page.locator("#feature-count").text_content()


def test_a_feature_is_shown_as_it_was_seen(opened: Open, reported: Run) -> None:
    page, told = opened(hash=f"#member={LOOKED[0]}&feature=9"), block(reported, LOOKED[0])
    page.wait_for_selector("#feature mark")
    assert "Feature 9" in page.locator("#feature h3").text_content()
    for kind, place in (("top", 0), ("spread", 1)):
        lines = page.locator("#feature .contexts").nth(place).locator("li")
        contexts = told["contexts"][kind][9]
        assert lines.count() == len(contexts)
        for line, (_, strength, tokens, _, percents) in zip(lines.all(), contexts, strict=True):
            marks = line.locator("mark")
            shares = marks.evaluate_all(
                "m => m.map(o => Number(o.style.getPropertyValue('--share')))"
            )
            assert shares == pytest.approx([abs(p) / 100 for p in percents])
            text = "".join(told["words"][token] for token in tokens)
            assert (
                line.locator(".text").text_content().replace("↵", "\n").replace("⇥", "\t") == text
            )
            shown = float(line.locator(".strength").text_content())
            assert shown == pytest.approx(strength, rel=0.01)
    promoted = [told["words"][w] for w in told["tokens"]["promoted"][9]]
    chips = page.locator("#feature .chips", has_text="promotes:").first.locator("code")
    assert chips.all_text_contents() == [w.replace("\n", "↵").replace("\t", "⇥") for w in promoted]
    counts = [c for c in told["histogram"]["counts"][9] if c]
    page.wait_for_selector("#histogram .main-svg")
    assert page.locator("#feature figure figcaption").text_content()
    assert page.locator("#feature figure .tools button").count() == 2
    bars = page.evaluate("document.getElementById('histogram').data[0].y")
    assert [bar for bar in bars if bar] == counts
    other, _ = told["neighbours"][9][0]
    page.locator("#feature .chips", has_text="Nearest in this member").locator(
        "button"
    ).first.click()
    assert f"Feature {other}" in page.locator("#feature h3").text_content()
    assert of_hash(page) == {"member": str(LOOKED[0]), "feature": str(other)}


def test_every_context_shows_that_the_feature_fires(reported: Run) -> None:
    """A weak activation is shown as weak, not as none."""
    for member in LOOKED:
        for kind in block(reported, member)["contexts"].values():
            for contexts in kind:
                for _, strength, _, active, percents in contexts:
                    assert strength != 0
                    assert active
                    assert 0 not in percents


def test_an_address_shows_the_same_again(opened: Open, reported: Run) -> None:
    page = opened(hash=f"#member={LOOKED[1]}&feature=17")
    page.wait_for_selector("#feature h3")
    assert reported.members.loc[LOOKED[1], "name"] in page.locator("#chosen h3").text_content()
    assert page.locator("#feature h3").text_content() == f"Feature 17 of member {LOOKED[1]}"
    page.reload()
    page.wait_for_selector("#feature h3")
    assert page.locator("#feature h3").text_content() == f"Feature 17 of member {LOOKED[1]}"


@pytest.mark.parametrize(
    "hash",
    [
        "member=99",
        "member=x&feature=y",
        "member=0&feature=-1",
        "member=0&feature=1.5",
        "member=0&feature=99999",
        "members",
    ],
)
def test_addresses_that_mean_nothing_do_no_harm(opened: Open, hash: str) -> None:
    page = opened(hash=f"#{hash}")
    page.locator("#features").scroll_into_view_if_needed()
    page.wait_for_selector("#feature h3")
    assert "Feature" in page.locator("#feature h3").text_content()


def test_from_the_chosen_member_to_its_features(opened: Open) -> None:
    page = opened(hash=f"#member={LOOKED[1]}")
    page.locator("#its-features").click()
    page.wait_for_selector("#feature h3")
    assert page.locator("#feature h3").text_content().endswith(f"member {LOOKED[1]}")
    page.locator("#feature-controls select").first.select_option(str(LOOKED[0]))
    title = page.locator("#feature h3")
    until(lambda: title.text_content().endswith(f"member {LOOKED[0]}"), "the other's features")


# Hostile text


def planted(reported: Run, folder: Path) -> Path:
    """The report with markup in place of every text that others may have written."""
    parts = blocks((reported.path / "report" / "index.html").read_text(encoding="utf-8"))
    data = parts.pop("data")
    told = data["members"]
    axis = next(axis for axis in told["axes"] if axis["name"] == "hook")
    for place, name in enumerate(told["columns"]["name"]):
        told["columns"]["name"][place] = ["=HYPERLINK(1)", "@x", "-1+1"][place % 3] + name + HOSTILE
        told["columns"]["flags"][place] = HOSTILE
        told["columns"]["status"][place] = HOSTILE
    told["columns"]["hook"] = [HOSTILE + hook for hook in told["columns"]["hook"]]
    axis["values"] = [HOSTILE + hook for hook in axis["values"]]
    data["name"] = data["path"] = HOSTILE
    data["notes"] = [HOSTILE]
    data["glance"] = [[HOSTILE, HOSTILE]]
    known = data["evaluated"]["references"]
    data["evaluated"]["references"] = {HOSTILE + hook: own for hook, own in known.items()}
    data["evaluated"]["bands"] = [f"{HOSTILE}{band}" for band in data["evaluated"]["bands"]]
    made = {}
    for name, block in parts.items():
        block["words"] = [HOSTILE + word for word in block["words"]]
        block["rule"] = [HOSTILE + rule for rule in block["rule"]]
        block["hangs_on"] = [HOSTILE] * len(block["rule"])
        block["text"] |= {"model": HOSTILE, "dataset": HOSTILE}
        made[int(name.removeprefix("features-"))] = block
    path = folder / "planted.html"
    path.write_text(made_page(data, made), encoding="utf-8")
    return path


def test_markup_in_texts_is_shown_and_never_run(
    opened: Open, reported: Run, tmp_path: Path
) -> None:
    page = opened(planted(reported, tmp_path), hash=f"#member={LOOKED[0]}")
    through(page)
    page.wait_for_selector("#feature mark")
    for place in (
        *("#chosen h3", "#notes", "#facts dd", "#lm ul", "#name", "#table", "#feature .text"),
        *(
            "#feature-list",
            "#feature .told",
            "#feature .chips",
            "#features-text",
            "[data-axis=hook]",
        ),
    ):
        assert (
            "<script>window.hacked=1</script><img src=x" in page.locator(place).first.text_content()
        ), place
    assert page.title().startswith(HOSTILE)
    hover_on(page, LOOKED[0])
    page.wait_for_selector("#figure-pareto .hovertext")
    assert "<img src=x" in page.locator("#figure-pareto .hoverlayer").text_content()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 5


def test_saved_cells_are_no_formulas(opened: Open, reported: Run, tmp_path: Path) -> None:
    page = opened(planted(reported, tmp_path))
    with page.expect_download() as waited:
        page.locator("#csv").click()
    waited.value.save_as(tmp_path / "saved.csv")
    with (tmp_path / "saved.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 6
    assert {row["name"][:2] for row in found} == {"'=", "'@", "'-"}
    assert all(row["name"].endswith(HOSTILE) for row in found)
    for row in found:
        for value in row.values():
            assert not value.startswith(("=", "+", "@", "\t")), value
            assert not value.startswith("-") or math.isfinite(float(value))


# Looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened: Open, scheme: str) -> None:
    page = opened(scheme=scheme)
    drawn(page, "pareto")

    def colours() -> tuple[str, str, str]:
        return page.evaluate(
            """[document.documentElement.dataset.theme,
            getComputedStyle(document.body).backgroundColor,
            document.querySelector('#figure-pareto .plot').layout.paper_bgcolor]"""
        )

    light = ["light", "rgb(255, 255, 255)", "#ffffff"]
    dark = ["dark", "rgb(13, 17, 23)", "#0d1117"]
    assert colours() == (light if scheme == "light" else dark)
    page.locator("#theme").click()
    assert colours() == (dark if scheme == "light" else light)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_narrow_screen_nothing_is_wider_than_it(opened: Open, scheme: str) -> None:
    page = opened(width=400, scheme=scheme)
    through(page)
    page.locator("#filters").evaluate("one => { one.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for section in page.locator("main section").all():
        assert section.evaluate("s => s.scrollWidth <= s.clientWidth + 1"), section.get_attribute(
            "id"
        )


# Runs of which little is known


def little(data: dict[str, Any]) -> None:
    """As of a run that has just begun: no metric, no curve."""
    told = data["members"]
    for name in told["metrics"]:
        told["columns"].pop(name)
        told["words"].pop(name)
    told["metrics"] = []
    told["columns"]["pareto"] = [False] * 6
    data |= {"training": {}, "densities": {}, "histories": {}, "neighbours": {}, "evaluated": {}}
    data["features"] = []


def alone(data: dict[str, Any]) -> None:
    """As of a run of one member, of whose features nobody knows."""
    told = data["members"]
    told["ids"] = told["ids"][:1]
    told["columns"] = {name: values[:1] for name, values in told["columns"].items()}
    told["axes"] = []
    data |= {"neighbours": {}, "histories": {}, "features": [], "evaluated": {}}


def gaps(data: dict[str, Any]) -> None:
    """As of a run where a member is frozen and has no numbers."""
    told = data["members"]
    for name in told["metrics"]:
        told["columns"][name][2] = None
    told["columns"]["status"][2] = "frozen at step 3"


def crowded(data: dict[str, Any]) -> None:
    """An axis of too many values for boxes."""
    axis = next(axis for axis in data["members"]["axes"] if axis["name"] == "l1")
    data["members"]["columns"]["l1"] = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, None]
    del axis["values"]
    axis |= {"from": 1e-3, "to": 5e-3, "lacking": True}


@pytest.mark.parametrize("change", [little, alone, gaps, crowded])
def test_runs_of_which_little_is_known(
    opened: Open, reported: Run, tmp_path: Path, change: Any
) -> None:
    parts = blocks((reported.path / "report" / "index.html").read_text())
    data = parts.pop("data")
    change(data)
    kept = {int(name.removeprefix("features-")): own for name, own in parts.items()}
    path = tmp_path / "page.html"
    path.write_text(made_page(data, kept if data["features"] else {}), encoding="utf-8")
    page = opened(path)
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        page.wait_for_timeout(60)
    if change is crowded:
        low = page.get_by_label("l1 from")
        low.fill("0.0025")
        low.press("Enter")
        assert shown(page) == set(listed(page)) == {2, 3, 4}
        page.get_by_role("button", name="Show all").click()
        assert len(listed(page)) == 6
    else:
        assert len(listed(page)) == len(data["members"]["ids"])
    if change is gaps:
        assert shown(page) == {0, 1, 3, 4, 5}
        assert listed(page)[-1] == 2
