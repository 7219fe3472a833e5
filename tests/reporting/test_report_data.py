"""What the report gathers, against slow readings of the same run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from page_parts import HOSTILE, LOOKED, Parsed, blocks, data_of, rows

import ensemble_sae
from ensemble_sae.analysis import neighbours, recovery
from ensemble_sae.errors import UserError
from ensemble_sae.inspection.collecting import BINS, EDGES, Collector
from ensemble_sae.reporting import browser, command, curves, looking, write_report
from ensemble_sae.reporting.choosing import along_the_frontier
from ensemble_sae.reporting.members import members
from ensemble_sae.reporting.page import page
from ensemble_sae.reporting.plain import plain, thinned
from ensemble_sae.run import Run


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Run:
    """A copy of the small run, evaluated and looked at."""
    shutil.copytree(evaluated, tmp_path / "run")
    return ensemble_sae.load(tmp_path / "run")


@pytest.fixture
def toy(known: Path, tmp_path: Path) -> Path:
    """A copy of the run on known features."""
    shutil.copytree(known, tmp_path / "toy")
    return tmp_path / "toy"


def changed(file: Path, change: Any) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


# Who is looked at


def frontier(
    l0: list[float], pareto: list[bool] | None = None, hooks: list[str] | None = None
) -> Any:
    table = pd.DataFrame({"l0": l0, "pareto": pareto or [True] * len(l0), "hook": hooks or "a"})
    return SimpleNamespace(members=table)


def test_members_near_the_wanted_l0_are_chosen_first() -> None:
    run = frontier([160.0, 1.3, 21.0, 82.0, 4.9, 19.8], [True, True, True, True, True, False])
    assert along_the_frontier(run, 1) == [2]  # 20
    assert along_the_frontier(run, 2) == [2, 3]  # then 80
    assert along_the_frontier(run, 3) == [4, 2, 3]  # then 5; in ascending order of L0
    assert along_the_frontier(run, 99) == [1, 4, 2, 3, 0]
    assert along_the_frontier(run, 0) == []


def test_hooks_take_turns_and_what_is_far_away_comes_last() -> None:
    run = frontier([20.0, 80.0, 18.0, 3000.0], hooks=["a", "a", "b", "b"])
    assert along_the_frontier(run, 2) == [2, 0]
    assert along_the_frontier(run, 3) == [2, 0, 1]
    assert along_the_frontier(run, 4) == [2, 0, 1, 3]
    assert along_the_frontier(run, 9) == [2, 0, 1, 3]


def test_what_is_left_is_taken_where_nobody_is_near() -> None:
    crowd = frontier([19.0, 20.0, 21.0, 25.0])
    assert along_the_frontier(crowd, 2) == [1, 3]
    assert along_the_frontier(crowd, 3) == [0, 1, 3]


def test_without_a_frontier_the_first_members_are_chosen() -> None:
    nobody = frontier([5.0, 6.0, 7.0], [False] * 3)
    assert along_the_frontier(nobody, 2) == [0, 1]
    nobody.members = nobody.members.drop(columns="pareto")
    assert along_the_frontier(nobody, 2) == [0, 1]


# The members' table


def grid(**columns: Any) -> pd.DataFrame:
    size = len(next(iter(columns.values())))
    common = {
        **{"name": [f"m{i}" for i in range(size)], "signature": "tied", "hook": "h"},
        **{"d_activation": 8, "n_dict": 16, "dict_ratio": 2.0, "lr": 1e-3, "grad_clip": None},
    }
    common |= {"seed": 0} | columns
    found = {"group": "g", "status": "trained", "fvu": 0.5, "l0": 3.0, "dead": 0.25}
    last = {"density_histogram": [[1, 2]] * size, "pareto": False, "flags": ""}
    return pd.DataFrame(common | found | last).rename_axis("id")


def test_axes_are_what_varies_as_boxes_or_as_ranges() -> None:
    table = grid(
        l1=[10**-place for place in np.linspace(1, 4, 30)],
        bias_decay=[0.0, 0.1, None] * 10,
        centred=[False, True] * 15,
        seed=[3, 1, 2] * 10,
        aux=[7.0] * 30,
    )
    axes = {axis["name"]: axis for axis in members(table, {})["axes"]}
    assert set(axes) == {"seed", "l1", "bias_decay", "centred"}
    assert axes["seed"] == {"name": "seed", "numbers": True, "lacking": False, "values": [1, 2, 3]}
    assert axes["bias_decay"]["values"] == [0, 0.1]
    assert axes["bias_decay"]["lacking"]
    assert axes["centred"]["values"] == [False, True]
    assert not axes["centred"]["numbers"]
    assert "values" not in axes["l1"]
    assert (axes["l1"]["from"], axes["l1"]["to"]) == (1e-4, 0.1)


def test_every_member_is_within_its_axes_as_they_are_written() -> None:
    """What is rounded is rounded alike, so that filters find it."""
    draw = np.random.default_rng(1)
    few, many = draw.random(7).repeat(8), draw.random(56)
    told = members(grid(few=few, many=many), {})
    boxes, between = (next(a for a in told["axes"] if a["name"] == n) for n in ("few", "many"))
    assert set(told["columns"]["few"]) == set(boxes["values"])
    assert min(told["columns"]["many"]) == between["from"]
    assert max(told["columns"]["many"]) == between["to"]


def test_columns_of_the_table() -> None:
    table = grid(l1=[1e-3, 1e-2, 1e-1], aux=[7.0] * 3)
    told = members(table, {"mmcs": pd.Series({1: 0.5}), "kl": pd.Series({0: math.nan})})
    assert told["metrics"] == ["fvu", "l0", "dead", "mmcs"], "a metric nobody has is not shown"
    assert told["columns"]["mmcs"] == [None, 0.5, None]
    assert told["columns"]["dead_features"] == [4, 4, 4]
    assert "density_histogram" not in told["columns"]
    assert told["words"].keys() == told["columns"].keys()
    assert "aux" in told["constant"]
    assert told["ids"] == [0, 1, 2]
    assert "mmcs" not in table, "the caller's table is as it was"


def test_what_all_members_share_is_the_same_in_all(run: Run) -> None:
    told = data_of(write_report(run))["members"]
    for name in told["constant"]:
        values = {json.dumps(value) for value in told["columns"][name]}
        assert len(values) == 1, (name, values)


# Numbers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (np.float32("nan"), None),
        (0.123456789, 0.12346),
        (-1.5e-9, -1.5e-9),
        (3.0, 3),
        (np.int64(7), 7),
        (True, True),
        (None, None),
        ("NaN", "NaN"),
        ({1: [math.nan, (2.0,)]}, {"1": [None, [2]]}),
        (torch.tensor([[1.5, math.inf]]), [[1.5, None]]),
        (np.array([0.1, math.nan]), [0.1, None]),
        (123_456, 123_456),
        (123_456.0, 123_456),  # a count in a column that has gaps
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("length", [0, 1, 2, 199, 200, 201, 1000, 5001])
def test_thinned_series_keep_both_ends(length: int) -> None:
    places = thinned(length, 200)
    assert len(places) == min(length, 200)
    assert places == sorted(set(places))
    if length:
        assert (places[0], places[-1]) == (0, length - 1)
        assert max(np.diff(places), default=0) <= math.ceil(length / 199)


# Curves


def test_training_curves_are_the_metrics(run: Run) -> None:
    told = curves.training(run)
    assert set(told) == {str(member) for member in run.members.index}
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for member, curve in told.items():
        own = sorted(
            (one for one in lines if one["member"] == int(member)), key=lambda o: o["step"]
        )
        assert curve["step"] == [one["step"] for one in own]
        assert curve["fvu"] == pytest.approx([one["fvu"] for one in own], rel=1e-4)


def test_long_curves_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = range(1, 1001)
    metrics = pd.DataFrame({"member": 4, "step": steps, "fvu": [1 / s for s in steps]})
    told = curves.training(SimpleNamespace(metrics=metrics.sample(frac=1, random_state=0)))["4"]
    assert len(told["step"]) == 200
    assert (told["step"][0], told["step"][-1]) == (1, 1000)
    assert told["fvu"] == pytest.approx([1 / s for s in told["step"]], rel=1e-4)
    assert "l0" not in told


@pytest.mark.parametrize("width", [1, 3, 4, 5, 17, 40, 64, 200, 1023])
def test_blocks_of_positions(width: int) -> None:
    values = np.random.default_rng(width).random((2, width))
    told = curves._profiles(curves._blocked(pd.DataFrame(values)))
    size = max(1, round(width / 32))
    expected, place = [], 0
    while place < width:
        end = place + 1 if place < 4 else min(place + size, width)
        inside = list(range(place, end))
        expected.append((sum(inside) / len(inside), [float(values[0, i]) for i in inside]))
        place = end
    assert told["places"] == pytest.approx([middle for middle, _ in expected], rel=1e-4)
    means = [sum(own) / len(own) for _, own in expected]
    assert told["of"]["0"] == pytest.approx(means, rel=1e-4)
    assert len(told["places"]) <= 4 + 48


def test_what_the_language_model_says(run: Run) -> None:
    told, found = curves.evaluated(run), run.evaluation
    assert set(told["references"]) == set(found.references)
    assert len(told["bands"]) == len(found.settings["bands"])
    for quantity in ("ce", "kl", "fvu", "l0"):
        raw = found.by_position(quantity)
        assert told["position"][quantity]["places"][:4] == [0, 1, 2, 3]
        for member, values in told["position"][quantity]["of"].items():
            row = raw.loc[int(member)].loc["all"].to_numpy()
            first = [None if math.isnan(v) else pytest.approx(v, rel=1e-4) for v in row[:4]]
            assert values[:4] == first
        bands = found.by_frequency(quantity)
        assert told["frequency"][quantity]["of"].keys() == {"0", "1", "2", "3", "4"}
        for member, values in told["frequency"][quantity]["of"].items():
            expected = bands.loc[int(member)].loc["all"].tolist()
            assert values == [
                None if math.isnan(v) else pytest.approx(v, rel=1e-4) for v in expected
            ]


def test_densities_have_a_bin_for_each_count(run: Run) -> None:
    told = curves.densities(run.members)
    for member, counts in told["counts"].items():
        assert sum(counts) == run.members.loc[int(member), "n_dict"]
        assert len(counts) == len(told["lowest"]) + 1, "the dead, then the bins"
    assert told["lowest"] == pytest.approx(sorted(told["lowest"]))


# Histogram of activations


def test_histogram_against_a_loop() -> None:
    draw = torch.Generator().manual_seed(5)
    code = torch.randn(40, 6, 5, generator=draw) * 10.0 ** torch.randint(
        -5, 5, (40, 6, 5), generator=draw
    )
    code[..., 1] = 0
    code[..., 2].clamp_(min=0)
    # on edges that float32 has, beyond both ends
    code[0, 1:6, 3] = torch.tensor([EDGES[0], EDGES[8], EDGES[-1], 1e30, 1e-45])
    read = torch.rand(40, 6, generator=draw) < 0.8
    read[0] = True
    collector = Collector(torch.ones(40, 6, dtype=torch.int64), 5)
    for start in (0, 7, 30):
        end = {0: 7, 7: 30, 30: 40}[start]
        collector.add(start, code[start:end], read[start:end])
    expected = torch.zeros(5, BINS, dtype=torch.int32)
    for fragment, place, feature in torch.cartesian_prod(*map(torch.arange, code.shape)).tolist():
        value = float(code[fragment, place, feature])
        if read[fragment, place] and value > 0:
            found = sum(value >= edge for edge in EDGES[1:-1])
            expected[feature, found] += 1
    assert torch.equal(collector.histogram, expected)
    assert collector.histogram[1].sum() == 0


# The browser's data


def test_contexts_are_those_of_the_features(run: Run) -> None:
    for looked in looking.looked(run, []):
        told, features = browser.browsed(looked), looked.features
        words = told["words"]
        assert len(set(words)) == len(words)
        for feature in range(len(features)):
            largest = features.table.loc[feature, "max"]
            for kind, count in (("top", 8), ("spread", 5)):
                every = features[feature].contexts(kind)
                kept = told["contexts"][kind][feature]
                assert len(kept) == min(count, len(every))
                places = range(len(kept)) if kind == "top" else spaced(len(every), len(kept))
                for place, context in zip(places, kept, strict=True):
                    same(every[place], context, words, largest)


def spaced(have: int, some: int) -> list[int]:
    """From the first to the last, as evenly as places are."""
    return [round(i * (have - 1) / max(1, some - 1)) for i in range(some)]


def same(own: Any, told: list[Any], words: list[str], largest: float) -> None:
    fragment, strength, tokens, active, percents = told
    first = max(0, own.strongest - browser.BEFORE)
    assert fragment == own.fragment
    assert strength == pytest.approx(own.activations[own.strongest], rel=1e-4)
    shown = own.tokens[first : own.strongest + browser.AFTER + 1]
    assert [words[token] for token in tokens] == shown
    for place in range(len(shown)):
        share = dict(zip(active, percents, strict=True)).get(place, 0)
        exact = 100 * own.activations[first + place] / largest
        assert share == pytest.approx(exact, abs=1 if abs(exact) < 0.5 else 0.51)
        assert (share == 0) == (exact == 0)


def test_numbers_lists_rules_and_neighbours(run: Run) -> None:
    for looked in looking.looked(run, []):
        told, table = browser.browsed(looked), looked.features.table
        json.dumps(told, allow_nan=False)
        assert ("ablation_kl" in told["numbers"]) == (looked.member == LOOKED[0])
        for name, values in told["numbers"].items():
            assert values == [
                None if math.isnan(v) else pytest.approx(v, rel=1e-4) for v in table[name]
            ]
        assert told["tokens"].keys() >= {"promoted", "suppressed"}
        for name, lists in told["tokens"].items():
            for own, places in zip(table[name], lists, strict=True):
                assert [told["words"][place] for place in places] == list(own)
        assert looked.rules is not None
        for feature in range(len(table)):
            known = feature in looked.rules.index
            assert (told["rule"][feature] != "") == known
            if known:
                score = looked.rules.loc[feature, "top_and_random"]
                assert told["score"][feature] == (
                    None if math.isnan(score) else pytest.approx(score, rel=1e-4)
                )
        counts = np.array(told["histogram"]["counts"])
        assert counts.shape == (len(table), len(told["histogram"]["edges"]) - 1)
        assert counts.sum(1).tolist() == looked.features.histogram.sum(1).tolist()
        atoms = run.sae(looked.member).dictionary.double()
        atoms = atoms / atoms.norm(dim=1, keepdim=True)
        cosines = (atoms @ atoms.T).fill_diagonal_(-2)
        for feature, near in enumerate(told["neighbours"]):
            expected = cosines[feature].topk(5).values.tolist()
            assert [cosine for _, cosine in near] == pytest.approx(expected, abs=1e-4)
            found = [float(cosines[feature, other]) for other, _ in near]
            assert found == pytest.approx(expected, abs=1e-4)


def test_features_kept_by_older_versions_have_no_histogram(run: Run) -> None:
    looked = looking.looked(run, [])[0]
    older = looking.Looked(
        looked.member,
        looked.features.__class__(**{**vars(looked.features), "histogram": None}),
        None,
        looked.call,
    )
    told = browser.browsed(older)
    assert told["histogram"] is None
    assert "rule" not in told


# What was looked at


def test_rules_are_kept_and_read_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = looking.looked(run, [])
    monkeypatch.setattr(looking, "by_rules", lambda *_: pytest.fail("found already"))
    again = looking.looked(run, [])
    assert [one.member for one in again] == list(LOOKED)
    for one, other in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(one.rules, other.rules)


@pytest.mark.parametrize(
    "name",
    ["settings.json", "table.parquet", "examples.safetensors", "vocabulary.json"],
)
def test_a_damaged_folder_is_told_and_left_out(run: Run, name: str) -> None:
    looking.looked(run, [])  # so that the rules are there
    folder = next((run.path / "inspected").glob(f"member-{LOOKED[0]:06d}-*"))
    kept = (folder / name).read_bytes()
    (folder / name).write_bytes(kept[: len(kept) // 2])
    notes: list[str] = []
    assert [one.member for one in looking.looked(run, notes)] == [LOOKED[1]]
    assert len(notes) == 1
    assert str(folder) in notes[0]
    told = data_of(write_report(run))
    assert [one["member"] for one in told["features"]] == [LOOKED[1]]
    assert any(str(folder) in note for note in told["notes"])


def test_damaged_rules_are_found_again(run: Run) -> None:
    before = looking.looked(run, [])[0].rules
    path = next((run.path / "inspected").glob(f"member-{LOOKED[0]:06d}-*")) / "rules.parquet"
    path.write_bytes(path.read_bytes()[:50])
    notes: list[str] = []
    again = looking.looked(run, notes)[0].rules
    assert not notes
    pd.testing.assert_frame_equal(before, again)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vocabulary.json", lambda words: words.clear()),
        ("settings.json", lambda told: told.pop("fragments")),
        ("settings.json", lambda told: told.update(tokens="many")),
        ("settings.json", lambda told: told.pop("tokens")),
    ],
)
def test_files_that_lack_something_do_not_stop_the_report(run: Run, name: str, change: Any) -> None:
    folder = next((run.path / "inspected").glob(f"member-{LOOKED[0]:06d}-*"))
    changed(folder / name, change)
    assert LOOKED[1] in [one["member"] for one in data_of(write_report(run))["features"]]


def test_features_of_an_older_checkpoint_are_not_shown(run: Run) -> None:
    folder = next((run.path / "inspected").glob(f"member-{LOOKED[0]:06d}-*"))
    changed(folder / "settings.json", lambda told: told.update(step=told["step"] - 1))
    notes: list[str] = []
    assert [one.member for one in looking.looked(run, notes)] == [LOOKED[1]]
    assert notes == []


def test_things_that_are_no_member_are_ignored(run: Run) -> None:
    inspected = run.path / "inspected"
    for name in ("member-x", "member-", "member-000099-00000000", ".tmp-1-member-000000-x"):
        (inspected / name).mkdir()
        (inspected / name / "settings.json").write_text("{}")
    (inspected / "member-000000-file").write_text("")
    notes: list[str] = []
    assert [one.member for one in looking.looked(run, notes)] == list(LOOKED)
    assert notes == []


# The page


def test_hostile_text_is_no_markup() -> None:
    data = {"name": HOSTILE, "notes": [HOSTILE, "]]>", "<!--", "\u2028", "\ud800"]}
    text = page(data, {3: {"words": [HOSTILE, "</SCRIPT >"]}})
    parsed = Parsed(text)
    assert [tag for tag, _ in parsed.found].count("img") == 0
    assert len(parsed.scripts) == 4
    assert [one.get("type") for one, _ in parsed.scripts] == ["application/gzip"] * 2 + [None] * 2
    assert "window.hacked" not in text.replace("&lt;script&gt;window.hacked=1", "").replace(
        "onerror=window.hacked=2", ""
    )
    assert blocks(text) == {"data": data, "features-3": {"words": [HOSTILE, "</SCRIPT >"]}}


def test_the_policy_allows_these_scripts_alone() -> None:
    parsed = Parsed(page({"name": "a"}, {}))
    policy = next(a["content"] for _, a in parsed.found if a.get("http-equiv"))
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for one, text in parsed.scripts
        if "type" not in one
    ]
    assert len(digests) == 2
    assert directives["script-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert directives["default-src"] == "'none'"
    assert not any("http" in value for value in directives.values())


def test_nothing_is_loaded_and_plotly_is_there_once() -> None:
    text = page({"name": "a"}, {1: {}, 2: {}})
    for tag, attributes in Parsed(text).found:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert text.count("plotly.js v") == 1
    styles = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in styles
    assert "@import" not in styles


# Whole reports


def test_the_report_of_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent)
    told: list[str] = []
    path = write_report(ensemble_sae.load("run"), told.append)
    assert path.resolve() == run.path / "report" / "index.html"
    data = data_of(path)
    assert data["load"] == 'ensemble_sae.load("run")'
    assert data["name"] == "run"
    assert data["model"] == ""
    assert len(told) >= 4
    found = rows(data)
    table = run.members
    for member, row in found.items():
        for name in ("fvu", "l0", "dead", "l1", "dict_ratio"):
            assert row[name] == pytest.approx(table.loc[member, name], rel=1e-4)
        assert row["pareto"] == table.loc[member, "pareto"]
    asked = run.evaluation.members
    for member, row in found.items():
        known = member in asked.index
        assert row["ce_recovered"] == (
            pytest.approx(asked.loc[member, "ce_recovered"], rel=1e-4) if known else None
        )
        assert (row["score"] is not None) == (member in LOOKED)
    assert "5 of 6 members are evaluated in the language model." in data["notes"]
    assert [one["member"] for one in data["features"]] == list(LOOKED)
    assert set(blocks(path.read_text())) == {"data", "features-0", "features-3"}


def test_a_glance(run: Run) -> None:
    facts = dict(data_of(write_report(run))["glance"])
    assert facts["members"] == "6 of tied, untied, transcoder"
    assert facts["features of each"] == "48 to 112, on rows of 128, 256 values"
    steps = int(run.metrics["step"].max())
    assert facts["each member saw"] == f"{64 * steps:,} rows, in {steps:,} steps of 64"
    rate = 6 * steps * 64 / run.status["seconds"]
    assert facts["speed"] == f"{rate:,.0f} SAE-rows per second"
    assert facts["frozen, not finite"] == "none"
    assert facts["rows from"].endswith("centred and scaled")


def test_known_features_are_compared_with(toy: Path) -> None:
    run = ensemble_sae.load(toy)
    data = data_of(write_report(run))
    assert {"mmcs", "mmcs_truth", "represented", "mmcs_larger", "mmcs_seed"} <= set(
        data["members"]["metrics"]
    )
    truth = recovery(run)
    beside = neighbours(run)
    for member, row in rows(data).items():
        for name in ("mmcs", "mmcs_truth", "represented"):
            assert row[name] == pytest.approx(truth.loc[member, name], rel=1e-4)
        other = beside[(beside["member"] == member) & (beside["kind"] == "seed")]["mmcs"]
        assert row["mmcs_seed"] == pytest.approx(other.mean(), rel=1e-4)
    assert data["model"] is None
    hook = run.members["hook"].iloc[0]
    atoms, frequency = run.truth(hook)
    assert data["truth"]
    for member, own in data["truth"].items():
        same = truth[run.members["n_dict"] == run.members.loc[int(member), "n_dict"]]
        assert truth.loc[int(member), "mmcs_truth"] == same["mmcs_truth"].max()
        cosines = atoms.double() @ run.sae(int(member)).dictionary.double().T
        largest, order = cosines.amax(1), frequency.argsort(stable=True)
        parts = [largest[part] for part in order.tensor_split(min(10, len(order)))]
        assert own["cosine"] == pytest.approx([float(part.mean()) for part in parts], abs=1e-4)
    assert data["histories"]["reference"] == "truth"
    for member, own in data["histories"]["of"].items():
        assert own["features"] == 16
        counts = ensemble_sae.histories(run, members=[int(member)]).of[int(member)].counts
        assert own["step"] == [point.step for point in run.checkpoints]
        assert own["learned"] == counts["learned"].tolist()


def test_comparisons_that_take_too_long_are_left_out_and_told(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_sae.reporting.structure.WORK", 10)
    monkeypatch.setattr(browser, "NEIGHBOUR_WORK", 10)
    data = data_of(write_report(ensemble_sae.load(toy)))
    assert data["neighbours"] == data["histories"] == {}
    assert "mmcs" not in data["members"]["metrics"]
    assert len(data["notes"]) == 3


def test_an_unfinished_run(toy: Path) -> None:
    (toy / "metrics.parquet").unlink()
    changed(toy / "run.json", lambda told: told.update(status="interrupted"))
    run = ensemble_sae.load(toy)
    data = data_of(write_report(run))
    assert "interrupted" in data["notes"][0]
    last = run.metrics.sort_values("step").groupby("member").last()
    for member, row in rows(data).items():
        assert row["fvu"] == pytest.approx(last.loc[member, "fvu"], rel=1e-4)
        assert not row["pareto"]


def test_a_run_of_which_hardly_anything_is_there(toy: Path) -> None:
    for name in ("metrics.parquet", "metrics.jsonl"):
        (toy / name).unlink()
    for name in ("checkpoints", "features"):
        shutil.rmtree(toy / name, ignore_errors=True)
    keep = ("schema_version", "status")
    changed(toy / "run.json", lambda told: [told.pop(k) for k in list(told) if k not in keep])
    data = data_of(write_report(ensemble_sae.load(toy)))
    assert data["training"] == data["histories"] == data["neighbours"] == {}
    assert data["features"] == []
    facts = dict(data["glance"])
    assert facts["members"].startswith("4 of")
    assert all(text.strip() not in ("", "()") for text in facts.values()), facts


def test_one_member(known: Path, tmp_path: Path) -> None:
    toy = tmp_path / "one"
    shutil.copytree(known, toy)
    changed(toy / "members.json", lambda told: told.update(members=told["members"][:1]))
    pd.read_parquet(toy / "metrics.parquet").iloc[:1].to_parquet(toy / "metrics.parquet")
    data = data_of(write_report(ensemble_sae.load(toy)))
    assert data["members"]["ids"] == [0]
    assert data["members"]["axes"] == []


def test_members_that_are_frozen_or_not_finite(toy: Path) -> None:
    table = pd.read_parquet(toy / "metrics.parquet")
    table.loc[1, "status"] = "frozen at step 7"
    table.loc[1, ["fvu", "l0", "dead", "min_cosine"]] = [math.nan, math.inf, math.nan, -math.inf]
    table.loc[1, "flags"] = "not finite"
    table.to_parquet(toy / "metrics.parquet")
    run = ensemble_sae.load(toy)
    data = data_of(write_report(run))
    facts, row = dict(data["glance"]), rows(data)[1]
    assert facts["frozen, not finite"] == f"1: {run.members.loc[1, 'name']}"
    assert "1 not finite" in facts["flagged"]
    assert row["fvu"] is row["l0"] is row["min_cosine"] is None
    assert row["status"] == "frozen at step 7"


def test_a_signature_of_ones_own(toy: Path) -> None:
    def own(told: dict[str, Any]) -> None:
        told["members"][2]["signature"] = "mine:Own"

    changed(toy / "members.json", own)
    table = pd.read_parquet(toy / "metrics.parquet")
    table.loc[2, "signature"] = "mine:Own"
    table.to_parquet(toy / "metrics.parquet")
    data = data_of(write_report(ensemble_sae.load(toy)))
    assert any("signature of your own" in note for note in data["notes"])
    assert dict(data["glance"])["members"] == "4 of tied, mine:Own (own)"
    assert len(data["training"]) == 4


def test_without_held_out_rows(toy: Path) -> None:
    """What training said last is shown in place of what nobody measured."""
    table = pd.read_parquet(toy / "metrics.parquet").drop(columns="density_histogram")
    table[["fvu", "l0", "dead"]] = math.nan
    table["pareto"], table["flags"] = False, ""
    table.to_parquet(toy / "metrics.parquet")
    data = data_of(write_report(ensemble_sae.load(toy)))
    assert data["densities"] == {}
    assert all(row["fvu"] is not None for row in rows(data).values())
    assert any("held-out" in note for note in data["notes"])


def test_several_hooks_have_a_frontier_each(run: Run) -> None:
    data = data_of(write_report(run))
    axis = next(axis for axis in data["members"]["axes"] if axis["name"] == "hook")
    assert axis["values"] == sorted(run.members["hook"].unique())
    assert set(data["evaluated"]["references"]) == set(run.evaluation.references)


def test_written_at_once_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(run)
    before = path.read_bytes()

    def torn(self: Path, text: str, **options: Any) -> int:
        self.write_bytes(text.encode()[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        with pytest.raises(UserError, match="could not be written") as caught:
            write_report(run)
    assert "No space left" in str(caught.value.found)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["index.html"]
    assert write_report(run).read_bytes() == before, "the same run gives the same page"


def test_a_file_in_the_way(toy: Path) -> None:
    (toy / "report").write_text("mine")
    with pytest.raises(UserError, match="could not be written"):
        write_report(ensemble_sae.load(toy))
    assert (toy / "report").read_text() == "mine"


# The command, and the end of a sweep


def test_every_sweep_ends_with_its_report(trained: Path) -> None:
    assert data_of(trained / "report" / "index.html")["members"]["ids"] == list(range(6))


def test_the_command_looks_and_writes(
    toy: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[int], bool]] = []
    monkeypatch.setattr(command, "Desk", lambda run, *many, **of: of)
    monkeypatch.setattr(
        command, "look_at", lambda desk, members, effects, told: asked.append((members, effects))
    )
    assert command.execute(toy, command.Look()) == 0
    assert asked == []
    assert (toy / "report" / "index.html").is_file()
    assert "index.html" in capsys.readouterr().out
    assert command.execute(run.path, command.Look(count=1, members="3,0", effects=True)) == 0
    first = along_the_frontier(run, 1)
    assert asked == [([*first, *(m for m in (0, 3) if m not in first)], True)]
    with pytest.raises(UserError):
        command.execute(run.path, command.Look(members="99"))
    with pytest.raises(UserError):
        command.execute(run.path / "nothing", command.Look())
