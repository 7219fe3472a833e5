"""`python -m ensemble_sae.adopt`: dictionaries of others as a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from interop.members import CASES, D, member, rows
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import ensemble_sae
from ensemble_sae import adopt as command
from ensemble_sae.engine import adopting_files
from ensemble_sae.engine.adopting import adopted
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.evaluation import evaluate
from ensemble_sae.evaluation.request import Request
from ensemble_sae.interop import (
    FORMATS,
    export,
    from_dictionary_learning,
    from_folder,
    from_saelens,
    from_sparsify,
    saelens,
)
from ensemble_sae.interop.about import About
from ensemble_sae.interop.folding import fold
from ensemble_sae.interop.kinds import made

HOOK = "blocks.2.hook_resid_pre"
FORMS = ("saelens", "dictionary_learning", "safetensors")


@pytest.fixture
def run_command():
    app = typer.Typer()
    app.command()(command.main)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def recipe(trained: Path) -> dict[str, Any]:
    """The rows of the small run."""
    return {"recipe": trained.parent / "small.toml", "data_dir": trained.parent / "data"}


def write(form: str, folder: Path, case: str = "tied", hook: str = HOOK) -> Any:
    """A member of a case in a folder; returns it folded."""
    folded = fold(member(*CASES[case]))
    folder.mkdir(parents=True)
    FORMATS[form].write(folded, folder, About(hook=hook, model="embedded"))
    return folded


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("form", FORMATS)
def test_members_compute_what_was_written(form: str, tmp_path: Path) -> None:
    cases = [c for c in CASES if form != "sparsify" or CASES[c][0] == "topk"]
    written = {case: write(form, tmp_path / case, case) for case in cases}
    names = [tmp_path / case for case in cases]
    run = adopted(names, run=tmp_path / "run", hook=HOOK, rows=False)
    assert run.members["name"].tolist() == cases
    x = rows()
    for id, case in enumerate(cases):
        sae = ensemble_sae.load(tmp_path / "run").sae(id)
        code = written[case].encode(x)
        close(sae.encode(x), code)
        close(sae(x), written[case](x))
        close(sae.dictionary, written[case].dictionary)
        assert sae.config.hyperparameters["format"] == form
        again = fold(sae)  # and may be exported from there
        close(again(x), written[case](x))


def test_the_table_is_that_of_the_run_it_came_from(folder: Path, tmp_path: Path, recipe) -> None:
    first = ensemble_sae.load(folder)
    for form in FORMS:
        folders = export(first, [0, 1, 2, 3], form, tmp_path / form)
        run = adopted(folders, run=tmp_path / f"run-{form}", **recipe)
        table = run.members
        assert list(table["hook"]) == [HOOK] * 4
        assert list(table["status"]) == ["adopted"] * 4
        for id in range(4):
            old, new = first.members.loc[id], table.loc[id]
            assert new["fvu"] == pytest.approx(old["fvu"], rel=1e-4)
            assert new["l0"] == pytest.approx(old["l0"], rel=1e-4)
            assert new["dead"] == old["dead"]
            assert new["min_cosine"] == pytest.approx(old["min_cosine"], abs=1e-4)
            assert new["flags"] == old["flags"]
            moved = abs(new["density_histogram"] - old["density_histogram"]).sum()
            assert moved <= 2  # a feature on the edge of a bin
            fired = first.firing(id)
            assert (run.firing(id) - fired).abs().max() <= 2
        own = first.members[first.members["hook"] == HOOK]
        assert table["pareto"].tolist() == own["pareto"].tolist()
        assert run.metrics.empty
        assert run.status["status"] == "adopted"
        origin = run.status["origin"]
        assert [entry["path"] for entry in origin] == [str(path) for path in folders]
        assert {entry["format"] for entry in origin} == {form}


def test_evaluated_in_the_language_model(folder: Path, tmp_path: Path, recipe) -> None:
    first = ensemble_sae.load(folder)
    folders = export(first, [1, 3], "saelens", tmp_path / "out")
    run = adopted(folders, run=tmp_path / "theirs", **recipe)
    request = Request(rows=400)
    old = evaluate(first, Request(rows=400, members=[1, 3])).members
    new = evaluate(run, request).members
    for column in ("ce", "kl", "fvu", "l0"):
        expected = pytest.approx(old.loc[[1, 3], column].tolist(), rel=1e-3)
        assert new[column].tolist() == expected
    evaluation = ensemble_sae.load(tmp_path / "theirs").evaluation
    assert evaluation.settings["model"] == "embedded"


def test_the_command(folder: Path, tmp_path: Path, recipe, run_command) -> None:
    first = ensemble_sae.load(folder)
    folders = export(first, [0, 2], "saelens", tmp_path / "out")
    data = ("--data-dir", recipe["data_dir"])
    given = (*folders, "--recipe", recipe["recipe"], *data, "--run", tmp_path / "runs/theirs")
    shown = run_command(*given)
    assert shown.exit_code == 0, shown.output
    said = shown.output.replace("\n", "")
    assert f"{first.members.loc[0, 'fvu']:.4f}" in said
    assert "ensemble_sae.evaluate" in said
    again = run_command(*given)
    assert again.exit_code == 2
    assert "already" in again.output
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["theirs"]


def test_autoencoders_and_members_of_a_run(folder: Path, tmp_path: Path, recipe) -> None:
    first = ensemble_sae.load(folder)
    (path,) = export(first, [0], "saelens", tmp_path / "out")
    saes = [from_saelens(path), first.sae(0), first.sae(0)]
    run = adopted(saes, run=tmp_path / "theirs", **recipe)
    name = first.configurations[0].name
    assert run.members["name"].tolist() == ["out", f"{name} #1", f"{name} #2"]
    assert run.members["fvu"].tolist() == pytest.approx([first.members.loc[0, "fvu"]] * 3, rel=1e-4)
    assert [entry["path"] for entry in run.status["origin"]] == [None] * 3
    with pytest.raises(UserError, match="cannot be written"):
        adopted([member("rica", {})], run=tmp_path / "none", rows=False)


def test_without_rows(tmp_path: Path) -> None:
    write("saelens", tmp_path / "a")
    run = adopted([tmp_path / "a"], run=tmp_path / "run", rows=False)
    assert run.members[["fvu", "l0", "dead"]].isna().all(axis=None)
    assert not run.members["pareto"].any()
    assert run.firing(0) is None
    assert run.members.loc[0, "model"] == "embedded"
    assert not (tmp_path / "run" / "features").exists()


def test_without_rows_the_recipe_is_known(folder: Path, tmp_path: Path, recipe) -> None:
    """Also one that has no name: it is in `sweep.json`."""
    from ensemble_sae.lm.origin import origin

    (path,) = export(ensemble_sae.load(folder), [0], "saelens", tmp_path / "out")
    named = adopted([path], run=tmp_path / "named", rows=False, recipe=recipe["recipe"])
    assert origin(named).context == 40
    said = adopted([path], run=tmp_path / "said", rows=False)
    assert (origin(said).model, origin(said).context) == ("embedded", 40)


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    from ensemble_sae import big_sweep

    write("saelens", tmp_path / "a")
    adopted([tmp_path / "a"], run=tmp_path / "run", rows=False)
    before = (tmp_path / "run" / "run.json").read_text()
    app = typer.Typer()
    app.command()(big_sweep.main)
    for sweep in ([], ["default"]):
        shown = CliRunner().invoke(app, [*sweep, "--run", str(tmp_path / "run"), "--resume"])
        assert shown.exit_code == 2, shown.output
        assert "nothing to train" in shown.output
    assert (tmp_path / "run" / "run.json").read_text() == before


# --- what makes no sense


def test_unknown_folders(tmp_path: Path) -> None:
    write("saelens", tmp_path / "many" / "one")
    (tmp_path / "many" / "cfg.json").write_text("{}")
    with pytest.raises(UserError, match="known format") as caught:
        from_folder(tmp_path / "many")
    assert "cfg.json, one/" in str(caught.value.found)
    assert "sae_weights.safetensors" in str(caught.value.allowed)
    assert "many/*" in str(caught.value.next_step)
    with pytest.raises(UserError, match="no dictionary") as caught:
        from_folder(tmp_path / "nothing")
    assert "no such folder" in str(caught.value.found)


def test_hook_model_and_widths_must_be_known(tmp_path: Path, recipe) -> None:
    write("saelens", tmp_path / "a", hook="")
    write("saelens", tmp_path / "b")
    given = {"run": tmp_path / "run"}
    with pytest.raises(UserError, match="which hook") as caught:
        adopted([tmp_path / "a"], rows=False, **given)
    assert "--hook" in str(caught.value.next_step)
    with pytest.raises(UserError, match="which text"):
        adopted([tmp_path / "b"], **given)
    with pytest.raises(UserError, match="another width") as caught:
        adopted([tmp_path / "b"], **given, **recipe)
    assert "128" in str(caught.value.allowed)
    wide = {"encoder": torch.ones(4, 7), "decoder": torch.ones(4, 7)}
    wide |= {"encoder_bias": torch.ones(4), "decoder_bias": torch.ones(7)}
    (tmp_path / "c").mkdir()
    saelens.write(made("standard", wide), tmp_path / "c", About(hook=HOOK))
    with pytest.raises(UserError, match="different widths") as caught:
        adopted([tmp_path / "b", tmp_path / "c"], rows=False, **given)
    assert f"7 and {D}" in str(caught.value.found)
    with pytest.raises(UserError, match="no such hook"):
        adopted([tmp_path / "b"], **given, **recipe, hook="blocks.2.hook_resid_prex")
    with pytest.raises(UserError, match="No dictionary is named"):
        adopted([], **given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch) -> None:
    write("saelens", tmp_path / "a")

    def full(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(adopting_files.results, "write_table", full)
    with pytest.raises(UserError, match="cannot be made") as caught:
        adopted([tmp_path / "a"], run=tmp_path / "deep/er/run", rows=False)
    assert "disk full" in str(caught.value.found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="already"):
        adopted([tmp_path / "a"], run=tmp_path / "mine", rows=False)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_another_model_than_the_recipe_is_said(folder: Path, tmp_path: Path, recipe) -> None:
    (path,) = export(ensemble_sae.load(folder), [0], "saelens", tmp_path / "out")
    config = json.loads((path / "cfg.json").read_text())
    config["metadata"]["model_name"] = "gpt2"
    (path / "cfg.json").write_text(json.dumps(config))
    said: list[str] = []
    adopted([path], run=tmp_path / "theirs", tell=said.append, **recipe)
    assert said == ["out says that it is of gpt2; the rows are of embedded."]


# --- what the readers make of files that we did not write


def test_sparsify_by_its_formula(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    w = {"encoder.weight": torch.randn(9, 5, generator=draw)}
    w |= {"encoder.bias": torch.randn(9, generator=draw), "b_dec": torch.randn(5, generator=draw)}
    w |= {"W_dec": torch.randn(9, 5, generator=draw)}
    save_file(w, tmp_path / "sae.safetensors")
    config = {"expansion_factor": 1, "normalize_decoder": True, "num_latents": 9, "k": 3, "d_in": 5}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    x = torch.randn(40, 5, generator=draw)
    code = torch.relu((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    best = code.topk(3, dim=1)
    code = torch.zeros_like(code).scatter(1, best.indices, best.values)
    for sae in (from_sparsify(tmp_path), from_folder(tmp_path)):
        torch.testing.assert_close(sae.encode(x), code, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(x), code @ w["W_dec"] + w["b_dec"], rtol=1e-5, atol=1e-5)
    for key, value in {
        "activation": "groupmax",
        "transcode": True,
        "skip_connection": True,
    }.items():
        (tmp_path / "cfg.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match="not known here") as caught:
            from_sparsify(tmp_path)
        assert key in str(caught.value.where)
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"k": None}))
    with pytest.raises(CorruptFile, match="its k"):
        from_sparsify(tmp_path)


def test_biases_of_half_precision_are_not_rounded_twice(tmp_path: Path) -> None:
    write("saelens", tmp_path / "a")
    path = tmp_path / "a" / "sae_weights.safetensors"
    w = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
    save_file(w, path)
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    (tmp_path / "a" / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": True}))
    x, w = rows(), {name: tensor.float() for name, tensor in w.items()}
    code = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    torch.testing.assert_close(from_saelens(tmp_path / "a").encode(x), code, rtol=1e-4, atol=1e-3)


def test_older_saelens_descriptions(tmp_path: Path) -> None:
    """Before version 6 the metadata stood beside the rest, and a code was named elsewhere."""
    write("saelens", tmp_path / "a")
    path = tmp_path / "a" / "cfg.json"
    config = json.loads(path.read_text())
    said = {"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "context_size": 128}
    older = {k: v for k, v in config.items() if k != "metadata"} | said
    path.write_text(json.dumps(older | {"activation_fn_str": "relu"}))
    sae = from_saelens(tmp_path / "a")
    assert sae.config.hook == "blocks.8.hook_resid_pre"
    assert sae.config.hyperparameters == {"format": "saelens", "model": "gpt2", "context": 128}
    for key, value in {"activation_fn_str": "topk", "finetuning_scaling_factor": True}.items():
        path.write_text(json.dumps(older | {key: value}))
        with pytest.raises(UserError, match="not known here") as caught:
            from_saelens(tmp_path / "a")
        assert key in str(caught.value.where)


def test_dictionary_learning_names_of_places(tmp_path: Path) -> None:
    write("dictionary_learning", tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    names = {"resid_post_layer_4": "blocks.4.hook_resid_post", HOOK: HOOK, "model.layers.3": ""}
    for name, hook in names.items():
        config["trainer"]["submodule_name"] = name
        path.write_text(json.dumps(config))
        assert from_dictionary_learning(tmp_path / "a").config.hook == hook


def test_damaged_dictionaries(tmp_path: Path) -> None:
    for form in ("saelens", "safetensors"):
        write(form, tmp_path / form)
        shutil.copytree(tmp_path / form, tmp_path / f"{form}-2")
    path = tmp_path / "saelens" / "sae_weights.safetensors"
    w = load_file(path)
    save_file(w | {"W_dec": w["W_dec"][:-1].contiguous()}, path)
    with pytest.raises(CorruptFile, match="fit together"):
        from_folder(tmp_path / "saelens")
    path = tmp_path / "safetensors" / "sae.safetensors"
    w = load_file(path)
    save_file({name: w[name] for name in ("encoder", "decoder", "decoder_bias")}, path)
    with pytest.raises(CorruptFile, match="lacks a tensor") as caught:
        from_folder(tmp_path / "safetensors")
    assert caught.value.allowed == "encoder_bias"
    (tmp_path / "saelens-2" / "cfg.json").write_text("[]")
    with pytest.raises(CorruptFile, match="damaged"):
        from_folder(tmp_path / "saelens-2")
    (tmp_path / "safetensors-2" / "config.json").write_text('{"kind": "gatedd"}')
    with pytest.raises(UserError, match="not known") as error:
        from_folder(tmp_path / "safetensors-2")
    assert "gated" in str(error.value.allowed)
