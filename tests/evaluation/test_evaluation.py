"""Every number of an evaluation against a slow one through transformers; and its going on."""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import slow_evaluation as slow
import torch

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.evaluation import Request, evaluate, files, passing, stage
from ensemble_sae.evaluation.subsets import Subset
from ensemble_sae.evaluation.tally import BANDS, bands_of
from ensemble_sae.files import open_tensors
from ensemble_sae.lm.load import EMBEDDED_FOLDER
from ensemble_sae.lm.origin import origin
from ensemble_sae.lm.text import Text, contexts, token_counts
from ensemble_sae.run import Run, load
from ensemble_sae.run.evaluation import Evaluation

RESID, MLP = slow.RESID, slow.MLP
CONTEXT = 40
ROWS = 310  # 8 contexts; the last is not full
COUNTED = 20_000
KEEP = ("frequent:10", "mcs:0.3")
ALL = Request(members=range(6), rows=ROWS, keep=KEEP)
driver: Any = importlib.import_module("ensemble_sae.evaluation.driver")


@pytest.fixture(autouse=True, scope="module")
def settled(bridge: Any) -> Iterator[None]:
    """Batches of 4 contexts, one source at a time; the model is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(passing.LOGITS, "cpu", 4 * CONTEXT * 4096)
        patch.setattr(stage, "COUNTED", COUNTED)
        real = stage.load_model
        patch.setattr(
            stage,
            "load_model",
            lambda name, *rest: bridge if name == "embedded" else real(name, *rest),
        )
        yield


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All members evaluated, undisturbed."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, folder)
    evaluate(load(folder), ALL)
    return load(folder)


@pytest.fixture(scope="module")
def text(run: Run, bridge: Any) -> Text:
    return contexts(origin(run), bridge, ROWS)


@pytest.fixture(scope="module")
def band(run: Run, bridge: Any) -> np.ndarray:
    """Of each token id, by its share of the training text."""
    counts = token_counts(origin(run), bridge, COUNTED).numpy()
    share = counts / counts.sum()
    return sum((share >= edge).astype(int) for edge in (1e-5, 1e-4, 1e-3, 1e-2))


@pytest.fixture(scope="module")
def model() -> Any:
    return slow.transformers_model()


@pytest.fixture(scope="module")
def means(model: Any, text: Text) -> dict[str, torch.Tensor]:
    """Over the rows that members read."""
    rows: dict[str, list[torch.Tensor]] = {RESID: [], MLP: []}
    for context, is_read in zip(text.tokens, text.is_read, strict=True):
        for point, values in slow.values_of(model, context).items():
            rows[point].append(values[0, is_read].double())
    return {point: torch.cat(own).mean(0).float() for point, own in rows.items()}


def points(run: Run, member: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    reads, _, gives = run.configurations[member].hook.partition(" -> ")
    inputs = tuple(reads.split(" + "))
    return inputs, (gives,) if gives else inputs


def mask(run: Run, member: int, features: str) -> torch.Tensor:
    """Which features a subset leaves, by the words of its description."""
    n = run.configurations[member].n_dict
    if features == "all":
        return torch.ones(n)
    if features.startswith("frequent"):
        counts = run.firing(member).tolist()
        best = sorted(range(n), key=lambda f: (-counts[f], f))[:10]
        return torch.tensor([float(f in best and counts[f] > 0) for f in range(n)])
    assert member == 1  # the only one with a next larger dictionary: member 2
    own, other = (run.sae(m).params["decoder"].double().numpy() for m in (1, 2))
    own, other = (d / np.linalg.norm(d, axis=1, keepdims=True) for d in (own, other))
    return torch.tensor((own @ other.T).max(1) > 0.3).float()


CASES = [(m, "all") for m in range(6)] + [(m, KEEP[0]) for m in (1, 4, 5)] + [(1, KEEP[1])]


@pytest.fixture(scope="module")
def expected(run: Run, model: Any, text: Text, means: Any) -> dict[tuple[int, str], slow.Sums]:
    scales = {point: units["scale"] for point, units in run.sweep["units"].items()}
    found = {}
    for member, features in CASES:
        sae, kept = run.sae(member), mask(run, member, features)

        def reconstruct(rows: torch.Tensor, sae: Any = sae, kept: torch.Tensor = kept) -> Any:
            code = sae.encode(rows) * kept
            return sae.decode(code), code

        own = slow.evaluate(model, text, points(run, member), reconstruct, means, scales)
        found[member, features] = own
    return found


def row(found: Evaluation, member: int, features: str) -> pd.Series:
    table = found.table
    (only,) = table[(table["member"] == member) & (table["features"] == features)].iloc
    return only


def close(found: Any, expected: float) -> None:
    assert float(found) == pytest.approx(expected, rel=2e-4, abs=2e-5, nan_ok=True)


# --- the numbers


@pytest.mark.parametrize(("member", "features"), CASES)
def test_overall(run, expected, member, features):
    own, sums = row(run.evaluation, member, features), expected[member, features]
    for name in ("ce", "kl", "fvu", "l0"):
        close(own[name], sums.mean(name))
    close(own["perplexity"], math.exp(sums.mean("ce")))
    assert own["kept"] == int(mask(run, member, features).sum())
    assert own["hook"] == run.configurations[member].hook


@pytest.mark.parametrize(("member", "features"), CASES)
@pytest.mark.parametrize("quantity", ["ce", "kl", "fvu", "l0"])
def test_by_position(run, expected, member, features, quantity):
    found = run.evaluation.by_position(quantity)
    assert list(found.columns) == list(range(CONTEXT))
    for at in (0, 1, 2, 17, 30, 38, 39):
        close(
            found.loc[(member, features), at],
            expected[member, features].mean(quantity, lambda p, _, at=at: p == at),
        )


@pytest.mark.parametrize(("member", "features"), CASES)
@pytest.mark.parametrize("quantity", ["ce", "kl", "fvu", "l0"])
def test_by_frequency(run, band, expected, member, features, quantity):
    found = run.evaluation.by_frequency(quantity)
    assert tuple(found.columns) == BANDS
    seen = set()
    for number, name in enumerate(BANDS):
        value = expected[member, features].mean(
            quantity, lambda _, token, number=number: band[token] == number
        )
        close(found.loc[(member, features), name], value)
        seen |= {name} if not math.isnan(value) else set()
    assert len(seen) >= 3


def test_edges_of_bands_are_of_the_more_frequent():
    counts = torch.tensor([0, 1, 10, 100, 1000, 98_889])  # of 100,000
    assert bands_of(counts).tolist() == [0, 1, 2, 3, 4, 4]


def test_bos_is_left_alone(run):
    found = run.evaluation
    assert found.by_position("fvu")[0].isna().all()
    assert found.by_position("l0")[0].isna().all()
    assert found.by_position("kl")[0].abs().max() < 1e-5  # a token of BOS sees nothing but BOS
    assert found.by_position("kl")[10].min() > 1e-3


@torch.no_grad()
def test_the_clean_loss_is_that_of_transformers(run, text, model):
    total = count = 0.0
    for context, is_text in zip(text.tokens, text.is_text, strict=True):
        labels = context.masked_fill(~is_text, -100)
        told = model(context[None], labels=labels[None])
        total += float(told.loss) * int(is_text[1:].sum())
        count += int(is_text[1:].sum())
    for known in run.evaluation.references.values():
        close(known["ce_clean"], total / count)


@pytest.mark.parametrize("member", [0, 4, 5])
def test_what_brackets_the_members(run, text, model, means, expected, member):
    inputs, gives = points(run, member)
    known = run.evaluation.references[run.configurations[member].hook]
    rows = {"ce_zero": {p: torch.zeros(128) for p in gives}, "ce_mean": means}
    for name, values in rows.items():
        constant = torch.cat([values[p] for p in gives])
        sums = slow.evaluate(
            model,
            text,
            (inputs, gives),
            lambda x, constant=constant: (constant.expand(len(x), -1), torch.zeros(len(x), 1)),
            means,
            dict.fromkeys(means, 1.0),
        )
        close(known[name], sums.mean("ce"))
    ce, clean, zero = expected[member, "all"].mean("ce"), known["ce_clean"], known["ce_zero"]
    close(row(run.evaluation, member, "all")["ce_recovered"], (zero - ce) / (zero - clean))


def test_identity_zeros_and_the_order_of_members(run):
    found = run.evaluation
    for hook in (RESID, f"{RESID} + {MLP}"):
        assert f"{found.references[hook]['ce_recovered_identity']:.4f}" == "1.0000"
        assert f"{found.references[hook]['ce_recovered_nothing']:.4f}" == "0.0000"
    for member, own in found.members.iterrows():
        known = found.references[own["hook"]]
        assert known["ce_clean"] < own["ce"] < known["ce_zero"], member
        assert 0 < own["ce_recovered"] < 1
    table = found.members
    assert table.loc[2, "ce"] < table.loc[1, "ce"]  # the larger of two
    assert row(found, 1, KEEP[0])["ce"] > row(found, 1, "all")["ce"]


def test_subsets_that_a_member_has_none_of(run):
    table = run.evaluation.table
    with_mcs = table[table["features"] == "mcs:0.3"]["member"].tolist()
    assert with_mcs == [1]
    assert sorted(table[table["features"] == KEEP[0]]["member"]) == list(range(6))
    assert 0 < row(run.evaluation, 1, "mcs:0.3")["kept"] < 64


def test_firing_counts_held_out_rows(run):
    """By encoding the store's own held-out rows."""
    from ensemble_sae.data.store import ChunkStore

    store = ChunkStore.open(run.sweep["stores"][RESID])
    rows = [store.activations(chunk.index).float() for chunk in store.chunks(held_out=True)]
    active = run.sae(2).encode(torch.cat(rows)) > 0
    found = run.firing(2)
    assert found.dtype == torch.int64
    assert (found - active.sum(0)).abs().max() <= 1  # a value next to zero


# --- going on


def same(found: Evaluation, expected: Evaluation) -> None:
    """The same rows, to the bit, whatever their order."""
    by = ["member", "features"]
    one, other = (e.table.sort_values(by, ignore_index=True) for e in (found, expected))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert found.references == expected.references
    for quantity in ("ce", "kl", "fvu", "l0"):
        for profile in ("by_position", "by_frequency"):
            one, other = (getattr(e, profile)(quantity).sort_index() for e in (found, expected))
            pd.testing.assert_frame_equal(one, other, check_exact=True)


class Stop(Exception):
    """Raised in the middle."""


def stop_at(call: int) -> Callable[[Any], None]:
    calls = iter(range(1, 10_000))

    def on_progress(progress: Any) -> None:
        if next(calls) == call:
            raise Stop

    return on_progress


@pytest.mark.parametrize(("shelf", "call"), [(2**32, 27), (1, 30)])
def test_an_interrupted_one_goes_on_to_the_same_bits(run, folder, monkeypatch, shelf, call):
    """16 sources at 3 hooks if all are on one shelf: 27 is in the second batch of two."""
    monkeypatch.setattr(driver, "SAVED_EVERY_S", -1.0)
    monkeypatch.setattr(stage, "SHELF", shelf)
    with pytest.raises(Stop):
        evaluate(load(folder), ALL, on_progress=stop_at(call))
    told: list[Any] = []
    found = evaluate(load(folder), ALL, on_progress=told.append)
    same(found, run.evaluation)
    assert not (folder / "evaluation" / files.PARTIAL).exists()
    done = [t.done for t in told]
    assert done == sorted(done)
    assert done[-1] == told[-1].total
    if shelf > 1:
        assert len(told) == 16
        assert all(t.before == t.total // 2 for t in told)


def test_sums_of_other_settings_are_not_gone_on_with(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "SAVED_EVERY_S", -1.0)
    with pytest.raises(Stop):
        evaluate(load(folder), Request(members=[0], rows=ROWS), on_progress=stop_at(8))
    assert (folder / "evaluation" / files.PARTIAL).is_file()
    other = Request(members=[0], rows=200)
    shutil.copytree(folder, tmp_path / "new", ignore=shutil.ignore_patterns("evaluation"))
    same(evaluate(load(folder), other), evaluate(load(tmp_path / "new"), other))


def test_damaged_sums_are_begun_anew(run, folder, monkeypatch):
    monkeypatch.setattr(driver, "SAVED_EVERY_S", -1.0)
    with pytest.raises(Stop):
        evaluate(load(folder), ALL, on_progress=stop_at(25))
    path = folder / "evaluation" / files.PARTIAL
    path.write_bytes(path.read_bytes()[:-100])
    same(evaluate(load(folder), ALL), run.evaluation)


def test_a_kill_between_two_files_does_no_harm(run, folder, monkeypatch):
    evaluate(load(folder), Request(members=[0, 1], rows=ROWS, keep=KEEP))

    def killed(path: Path, write: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", killed)  # of the table, after the profiles
        with pytest.raises(Stop):
            evaluate(load(folder), Request(members=[2], rows=ROWS, keep=KEEP))
    profiles = open_tensors(folder / "evaluation" / "profiles.safetensors")
    before = load(folder).evaluation
    assert len(profiles.get_tensor("ce/position")) > len(before.table) == 5
    assert len(before.by_position("ce")) == 5
    evaluate(load(folder), Request(members=[5, 4, 3], rows=ROWS, keep=KEEP))
    same(evaluate(load(folder), ALL), run.evaluation)


def test_a_second_call_does_nothing(run, monkeypatch):
    path = run.path / "evaluation" / "table.parquet"
    before, told = path.stat().st_mtime_ns, []
    monkeypatch.setattr(stage.Stage, "work", lambda *_: pytest.fail("done again"))
    found = evaluate(run, ALL, tell=told.append)
    assert "nothing to do" in told[0]
    assert path.stat().st_mtime_ns == before
    assert len(found.members) == 6


def test_several_at_once_give_what_single_ones_give(run, folder, monkeypatch):
    monkeypatch.setitem(passing.LOGITS, "cpu", 2**23)  # the text fits four times
    found = evaluate(load(folder), ALL)
    by = ["member", "features"]
    one, other = (e.table.sort_values(by, ignore_index=True) for e in (found, run.evaluation))
    pd.testing.assert_frame_equal(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": 250}, r"settings\.json: rows[\s\S]*310[\s\S]*250[\s\S]*--overwrite"),
        ({"keep": ()}, r"settings\.json: keep"),
        ({"context": 32}, r"settings\.json: context[\s\S]*40[\s\S]*32"),
        ({"dataset": "own"}, r"settings\.json: held_out"),
    ],
)
def test_results_of_other_settings_are_not_mixed(run, change, named):
    before = (run.path / "evaluation" / "table.parquet").read_bytes()
    if "dataset" in change:  # the same text, but all of it
        change = {"dataset": origin(run).dataset}
    with pytest.raises(UserError, match=named):
        evaluate(run, Request(**{"members": [0], "rows": ROWS, "keep": KEEP, **change}))
    assert (run.path / "evaluation" / "table.parquet").read_bytes() == before


def test_overwriting(folder):
    evaluate(load(folder), Request(members=[0], rows=100))
    (folder / "evaluation" / "settings.json").write_text("[1, 2]")
    with pytest.raises(CorruptFile, match=r"settings[\s\S]*--overwrite"):
        evaluate(load(folder), Request(members=[0], rows=100))
    with pytest.raises(CorruptFile, match=r"settings"):
        _ = load(folder).evaluation
    found = evaluate(load(folder), Request(members=[1], rows=70, overwrite=True))
    assert found.members.index.tolist() == [1]
    (folder / "evaluation" / "table.parquet").write_bytes(b"no table")
    with pytest.raises(CorruptFile, match=r"table\.parquet[\s\S]*--overwrite"):
        _ = load(folder).evaluation


# --- which members


def test_too_long_only_those_that_are_pareto_best(folder):
    best = load(folder).members["pareto"]
    assert best.sum() > 0
    table = load(folder).members.assign(pareto=[True, False, True, False, False, True])
    table.reset_index().to_parquet(folder / "metrics.parquet", index=False)
    told: list[str] = []
    request = Request(rows=100, minutes=0.0)
    found = evaluate(load(folder), request, tell=told.append)
    assert sorted(found.members.index) == [0, 2, 5]
    assert "All 6 members would take about 1 min" in told[0]
    assert "only the 3 that are Pareto-best are evaluated" in told[0]
    found = evaluate(load(folder), request, tell=told.append)
    assert sorted(found.members.index) == [0, 2, 5]
    assert "Pareto-best are evaluated already" in told[1]
    found = evaluate(load(folder), Request(rows=100))  # there is time for the rest
    assert sorted(found.members.index) == list(range(6))


def test_what_was_begun_is_not_asked_again_how_long_it_takes(folder, monkeypatch):
    monkeypatch.setattr(driver, "SAVED_EVERY_S", -1.0)
    with pytest.raises(Stop):
        evaluate(load(folder), Request(rows=200), on_progress=stop_at(20))
    assert not (folder / "evaluation" / "table.parquet").exists()
    table = load(folder).members.assign(pareto=False)
    table.reset_index().to_parquet(folder / "metrics.parquet", index=False)
    told: list[Any] = []
    found = evaluate(load(folder), Request(rows=200, minutes=0.0), on_progress=told.append)
    assert sorted(found.members.index) == list(range(6))
    assert told[0].before > 0


def test_a_run_that_is_not_finished(folder):
    (folder / "metrics.parquet").unlink()
    told: list[str] = []
    request = Request(rows=70, minutes=0.0, keep=("frequent:5",))
    shutil.rmtree(folder / "features")
    found = evaluate(load(folder), request, tell=told.append)
    assert len(found.members) == len(found.table) == 6  # nobody counted which features fire
    assert "nobody knows yet which are Pareto-best" in told[0]
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluate(load(folder), Request(rows=70, members=[0], overwrite=True))


def test_members_that_are_not_there(folder):
    with pytest.raises(UserError, match=r"no such member[\s\S]*77[\s\S]*0 to 5"):
        evaluate(load(folder), Request(members=[0, 77]))
    with pytest.raises(UserError, match="No member is named"):
        evaluate(load(folder), Request(members=[]))
    assert not (folder / "evaluation").exists()


@pytest.mark.parametrize(
    "text", ["mcs", "mcs:2", "mcs:nan", "frequent:0", "frequent:1.5", "frequent:inf", "best:3"]
)
def test_subsets_that_make_no_sense(folder, text):
    with pytest.raises(UserError, match=r"Which features[\s\S]*frequent:64"):
        evaluate(load(folder), Request(members=[0], keep=(text,)))


def test_names_of_subsets():
    names = ("frequent:64", "frequent:1234567", "mcs:0.9", "mcs:0")
    assert [Subset.parse(name).name for name in names] == list(names)
    assert Subset.parse("frequent:6e1").name == "frequent:60"


# --- models and folders that do not fit


def tiny_model(folder: Path, width: int, layers: int) -> str:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=4096, n_positions=64, n_embd=width, n_layer=layers, n_head=2, bos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for path in EMBEDDED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, folder)
    return str(folder)


def test_a_member_of_another_width_than_the_hook(folder, tmp_path):
    other = tiny_model(tmp_path / "narrow", 32, 3)
    with pytest.raises(UserError, match=r"d_activation 128[\s\S]*32, the width"):
        evaluate(load(folder), Request(members=[0], model=other))


def test_a_model_without_that_hook(folder, tmp_path):
    other = tiny_model(tmp_path / "short", 128, 2)
    with pytest.raises(UserError, match=r"blocks\.0 to blocks\.1[\s\S]*blocks\.1\.hook_resid_pre"):
        evaluate(load(folder), Request(members=[0], model=other))


def test_contexts_longer_than_the_model(folder):
    with pytest.raises(UserError, match=r"300 tokens[\s\S]*up to 256"):
        evaluate(load(folder), Request(members=[0], context=300))


def test_a_model_that_is_not_on_this_machine(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not on this machine[\s\S]*give that FOLDER"):
        evaluate(load(folder), Request(members=[0], model="nobody/no-such-model"))


def test_a_text_of_its_own(folder, tmp_path):
    """All of it is read, be it a single document."""
    (tmp_path / "one.txt").write_text("It was the best of times, it was the worst. " * 12)
    found = evaluate(load(folder), Request(members=[0], dataset=str(tmp_path / "one.txt")))
    assert found.settings["held_out"] == 0
    assert found.members.loc[0, "fvu"] > 0


def test_a_folder_that_cannot_be_written(folder):
    (folder / "evaluation").write_text("a file in its place")
    with pytest.raises(UserError, match="cannot be written here"):
        evaluate(load(folder), Request(members=[0], rows=70))


def test_only_one_at_a_time(folder):
    from filelock import FileLock

    (folder / "evaluation").mkdir()
    with (
        FileLock(folder / "evaluation" / ".lock"),
        pytest.raises(UserError, match="Another process is evaluating"),
    ):
        evaluate(load(folder), Request(members=[0], rows=70))


def test_a_quantity_that_is_not_measured(run):
    with pytest.raises(UserError, match="no such quantity") as caught:
        run.evaluation.by_position("loss")
    assert "fvu" in str(caught.value.allowed)


def test_before_it_is_evaluated(folder):
    with pytest.raises(UserError, match=r"not evaluated[\s\S]*ensemble_sae\.evaluate"):
        _ = load(folder).evaluation
