"""The harvest against transformers' own hidden states, and through every kind of interruption."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemble_sae.config import builtin
from ensemble_sae.config.recipe import Recipe, load_recipe
from ensemble_sae.data import disk
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError
from ensemble_sae.lm.documents import documents, with_sides
from ensemble_sae.lm.harvest import Progress, finished, harvest, widths
from ensemble_sae.lm.harvest_contexts import Block, blocks
from ensemble_sae.lm.harvest_model import fingerprint, folder_fingerprint

CONTEXT = 32
HOOKS = ("blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post")
END = "<|endoftext|>"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is too small to share out, and one thread gives the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 (2 layers, d 16) with byte-level tokens, and 60 short texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("lm")
    vocabulary = {END: 0, **{letter: i for i, letter in enumerate(alphabet(), 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=64
    ).save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    (folder / "text").mkdir()
    random = np.random.default_rng(0)
    for i in range(60):
        text = bytes(random.integers(97, 123, random.integers(1, 90)).tolist()).decode()
        (folder / "text" / f"{i:02}.txt").write_text(text + (END if i % 7 == 0 else ""))
    return folder


def recipe(folder: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "tiny",
        "model": str(folder / "model"),
        "dataset": str(folder / "text"),
        "hooks": HOOKS,
        "context": CONTEXT,
        "chunk_rows": 16 * (CONTEXT - 1),
        "batch_size": 4,
        "held_out": 0.2,
        "device": "cpu",
    }
    return Recipe(**{**values, **changes})


@cache
def alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def tokens_of(text: str) -> list[int]:
    """The fixture's tokens, without its tokenizer: one per letter."""
    return [1 + alphabet().index(letter) for letter in text]


def columns(store: ChunkStore, held_out: bool | None = None) -> dict[str, torch.Tensor]:
    chunks = [c.index for c in store.meta.chunks if held_out in (None, c.held_out)]
    parts = [{"activations": store.activations(i), **store.columns(i)} for i in chunks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def contents(stores: list[ChunkStore]) -> dict[str, str]:
    return {
        f"{store.path.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for store in stores
        for file in sorted(store.path.iterdir())
    }


# --- what the rows are


def reference(recipe: Recipe) -> dict[bool, list[tuple[list[int], list[int], int]]]:
    """The contexts of each side, packed one token at a time: (tokens, documents, length)."""
    packed = {}
    for side in (False, True):
        stream: list[tuple[int, int]] = []
        contexts = []
        for document in with_sides(documents(recipe), recipe.held_out, recipe.seed):
            if document.held_out == side:
                for token in [0, *tokens_of(document.text)]:
                    if token == 0 and not stream:
                        continue  # every context begins with BOS anyway
                    stream.append((token, document.index))
                    if len(stream) == CONTEXT - 1:
                        contexts.append(stream)
                        stream = []
        contexts += [stream] if stream else []
        packed[side] = [
            ([0, *(t for t, _ in c)], [c[0][1], *(d for _, d in c)], len(c) + 1) for c in contexts
        ]
    return packed


@pytest.mark.parametrize("drop_bos", [True, False])
def test_rows_are_the_hidden_states_of_transformers(
    folder: Path, tmp_path: Path, drop_bos: bool
) -> None:
    """Every token of the data set, once, from an unbatched run of transformers itself."""
    from transformers import GPT2LMHeadModel

    asked = recipe(folder, drop_bos=drop_bos, dtype="float32")
    stores = dict(zip(HOOKS, harvest(asked, tmp_path), strict=True))
    model = GPT2LMHeadModel.from_pretrained(folder / "model").eval()
    mlp: list[torch.Tensor] = []
    model.transformer.h[1].mlp.register_forward_hook(lambda m, i, out: mlp.append(out[0]))
    # The last block's output before the final norm is what hidden_states leaves out.
    last: list[torch.Tensor] = []
    model.transformer.ln_f.register_forward_pre_hook(lambda m, i: last.append(i[0][0]))
    for side, contexts in reference(asked).items():
        expected: dict[tuple[int, int, int], list[torch.Tensor]] = {}
        for tokens, owners, length in contexts:
            with torch.no_grad():
                out = model(torch.tensor([tokens]), output_hidden_states=True)
            states = torch.cat([out.hidden_states[1][0], mlp.pop(), last.pop()], dim=1)
            for position in range(length):
                if tokens[position] or not drop_bos:
                    name = (tokens[position], position, owners[position])
                    expected.setdefault(name, []).append(states[position])
        found = [columns(stores[hook], held_out=side) for hook in HOOKS]
        rows = torch.cat([part["activations"] for part in found], dim=1)
        names = torch.stack([found[0][n] for n in ("tokens", "positions", "documents")], dim=1)
        assert len(rows) == sum(map(len, expected.values()))
        for row, name in zip(rows, names.tolist(), strict=True):
            # The same token, position and document may be in two contexts: the closer one.
            same = expected[tuple(name)]
            best = min(range(len(same)), key=lambda i: float((same[i] - row).abs().max()))
            torch.testing.assert_close(row, same.pop(best), atol=1e-5, rtol=1e-4)


def test_stored_dtype_is_a_rounding_of_float32(folder: Path, tmp_path: Path) -> None:
    exact = harvest(recipe(folder, dtype="float32", name="exact"), tmp_path)
    for dtype in ("float16", "bfloat16"):
        rounded = harvest(recipe(folder, dtype=dtype, name=dtype), tmp_path)
        for a, b in zip(exact, rounded, strict=True):
            expected = columns(a)["activations"].to(getattr(torch, dtype))
            assert torch.equal(columns(b)["activations"], expected)


def test_the_stores_of_a_harvest_are_aligned_and_shuffled(folder: Path, tmp_path: Path) -> None:
    stores = harvest(recipe(folder), tmp_path)
    parts = [columns(store) for store in stores]
    for name in ("tokens", "positions", "documents"):
        assert all(torch.equal(part[name], parts[0][name]) for part in parts)
        assert parts[0][name].dtype == torch.int32
    steps = stores[0].columns(0)["positions"].diff()
    assert (steps == 1).float().mean() < 0.2  # unshuffled: nearly all
    assert {store.meta.source.hook for store in stores} == set(HOOKS)


def test_statistics_are_those_of_numpy(folder: Path, tmp_path: Path) -> None:
    for store in harvest(recipe(folder), tmp_path):
        rows = columns(store, held_out=False)["activations"].double().numpy()
        np.testing.assert_allclose(store.meta.mean, rows.mean(0), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(store.meta.variance, rows.var(0), rtol=1e-10)
        centred = ((rows - rows.mean(0)) ** 2).sum(1).mean() / 16
        assert store.scale == pytest.approx(np.sqrt(centred), rel=1e-10)


def test_held_out_documents_are_never_trained_on(folder: Path, tmp_path: Path) -> None:
    store = harvest(recipe(folder), tmp_path)[0]
    sides = {side: set(columns(store, side)["documents"].tolist()) for side in (True, False)}
    assert sides[True]
    assert sides[False]
    assert not sides[True] & sides[False]
    assert len(sides[True] | sides[False]) == 60


@pytest.mark.parametrize("rows", [2, 40, 777])
def test_rows_are_kept_to_the_row(folder: Path, tmp_path: Path, rows: int) -> None:
    for store in harvest(recipe(folder, rows=rows), tmp_path):
        assert store.meta.rows == rows
        assert store.rows(held_out=True) == max(1, round(0.2 * rows))
        assert (columns(store)["tokens"] != 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_chunks_are_of_whole_contexts(folder: Path, tmp_path: Path, seed: int) -> None:
    """The first held-out chunk comes at once, so that a growing store can be evaluated on."""
    # A third is held out, so that a held-out context is ready before the first chunk is full.
    asked = recipe(folder, drop_bos=False, chunk_rows=16 * CONTEXT, held_out=0.34, seed=seed)
    store = harvest(asked, tmp_path)[0]
    training = [chunk.rows for chunk in store.chunks()]
    assert set(training[:-1]) == {16 * CONTEXT}
    assert 0 < training[-1] <= 16 * CONTEXT
    assert any(chunk.held_out for chunk in store.meta.chunks[:2])


def test_packing_matches_the_slow_way(folder: Path) -> None:
    for changes in ({}, {"drop_bos": False}, {"rows": 500}, {"held_out": 0.0}, {"chunk_rows": 32}):
        asked = recipe(folder, **changes)
        sided = with_sides(documents(asked), asked.held_out, asked.seed)
        found: dict[bool, list[Block]] = {False: [], True: []}
        for block in blocks(asked, sided, lambda texts: [tokens_of(t) for t in texts], bos=0):
            found[block.held_out].append(block)
        for side, contexts in reference(asked).items():
            tokens = [row for block in found[side] for row in block.tokens.tolist()]
            owners = [row for block in found[side] for row in block.documents.tolist()]
            padded = [c + [0] * (CONTEXT - len(c)) for c, _, _ in contexts]
            assert tokens == padded[: len(tokens)]
            for row, (_, expected, length) in zip(owners, contexts, strict=False):
                assert row[:length] == expected
            kept = sum(block.rows for block in found[side])
            if asked.rows is None:
                bos = 0 if asked.drop_bos else sum(c[:n].count(0) for c, _, n in contexts)
                assert kept == bos + sum(t != 0 for c, _, _ in contexts for t in c)
            else:
                assert kept == round(500 * (0.2 if side else 0.8))


# --- interruptions


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of an uninterrupted harvest."""
    return contents(harvest(recipe(folder), tmp_path_factory.mktemp("whole")))


def test_interrupted_after_every_chunk(folder: Path, tmp_path: Path, whole: dict[str, str]) -> None:
    def stop(index: int, held_out: bool) -> None:
        raise KeyboardInterrupt

    interruptions = 0
    while True:
        try:
            stores = harvest(recipe(folder), tmp_path, on_chunk=stop)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert contents(stores) == whole
    assert interruptions == len(stores[0].meta.chunks) > 3


def test_interrupted_between_two_stores(
    folder: Path, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_sae.data.writer import StoreWriter

    append, calls = StoreWriter.append, iter(range(10**6))

    def sometimes(self: StoreWriter, *given: Any) -> Any:
        if next(calls) % 5 == 4:
            raise KeyboardInterrupt
        return append(self, *given)

    monkeypatch.setattr(StoreWriter, "append", sometimes)
    for _ in range(50):
        try:
            assert contents(harvest(recipe(folder), tmp_path)) == whole
            return
        except KeyboardInterrupt:
            pass
    pytest.fail("it never comes to an end")


def command(folder: Path, data: Path, *more: str) -> list[str]:
    asked = recipe(folder)
    options = {
        "--name": asked.name,
        "--model": asked.model,
        "--dataset": asked.dataset,
        "--context": asked.context,
        "--chunk-rows": asked.chunk_rows,
        "--batch-size": asked.batch_size,
        "--held-out": asked.held_out,
        "--device": asked.device,
        "--data-dir": data,
    }
    words = [str(word) for pair in options.items() for word in pair]
    hooks = [word for hook in HOOKS for word in ("--hook", hook)]
    return [sys.executable, "-m", "ensemble_sae.harvest", *words, *hooks, *more]


def test_killed(
    folder: Path, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 as soon as the first chunk is there; the same command then ends as if undisturbed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(
        command(folder, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    first = tmp_path / "tiny" / HOOKS[0] / "meta.json"
    deadline = time.monotonic() + 60
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not ChunkStore.open(first.parent).meta.complete
    done = subprocess.run(command(folder, tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rows/s" in done.stderr
    assert HOOKS[1] in done.stdout
    stores = [ChunkStore.open(tmp_path / "tiny" / hook) for hook in HOOKS]
    assert contents(stores) == whole


def test_complete_means_nothing_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = contents(harvest(recipe(folder), tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("ensemble_sae.lm.load.load_model", None)  # not even loaded
        assert contents(harvest(recipe(folder), tmp_path)) == first
        with pytest.raises(UserError, match=r": context\n.*32\n.*16"):
            harvest(recipe(folder, context=16), tmp_path)
    again = harvest(recipe(folder, context=16), tmp_path, resume=False)
    assert again[0].meta.source.context == 16


@pytest.mark.parametrize("complete", [False, True])
def test_other_weights_are_noticed(folder: Path, tmp_path: Path, complete: bool) -> None:
    """Neither is an interrupted store continued, nor a complete one taken for this model's."""
    import shutil

    from transformers import GPT2LMHeadModel

    def stop(index: int, held_out: bool) -> None:
        if not complete:
            raise KeyboardInterrupt

    shutil.copytree(folder / "model", tmp_path / "model")
    asked = recipe(folder, model=str(tmp_path / "model"))
    with contextlib.suppress(KeyboardInterrupt):
        harvest(asked, tmp_path / "data", on_chunk=stop)
    assert bool(finished(asked, tmp_path / "data")) == complete
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    model.transformer.h[0].ln_1.weight.data[3] += 1e-3
    model.save_pretrained(tmp_path / "model")
    for call in (harvest, finished):
        with pytest.raises(UserError, match=": weights\n"):
            call(asked, tmp_path / "data")


def test_weights_of_a_model_from_the_hub_are_told_apart(folder: Path) -> None:
    from ensemble_sae.lm.load import load_model

    bridge = load_model(str(folder / "model"))
    before = fingerprint(bridge)
    assert fingerprint(load_model(str(folder / "model"))) == before
    assert folder_fingerprint("owner/model") is None
    with torch.no_grad():
        next(bridge.parameters()).flatten()[5] += 1e-3
    assert fingerprint(bridge) != before


# --- values that are not finite, room, progress, words


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations of the letter "e" that float16 cannot hold, in one hook of three."""
    from ensemble_sae.lm import load

    run_hooks = load.run_hooks

    def large(bridge: Any, tokens: torch.Tensor, hooks: Any) -> dict[str, torch.Tensor]:
        run = dict(run_hooks(bridge, tokens, hooks))
        scale = torch.where(tokens == tokens_of("e")[0], 1e12, 1.0)
        run[HOOKS[1]] = run[HOOKS[1]] * scale[..., None]
        return run

    monkeypatch.setattr(load, "run_hooks", large)


@pytest.mark.usefixtures("overflowing")
def test_rows_that_overflow_are_left_out_of_all_stores(folder: Path, tmp_path: Path) -> None:
    stores = harvest(recipe(folder), tmp_path)
    everything = columns(harvest(recipe(folder, name="all", dtype="float32"), tmp_path)[0])
    e = everything["tokens"] == tokens_of("e")[0]
    for store in stores:
        found = columns(store)
        assert torch.equal(found["tokens"], everything["tokens"][~e])
        assert found["activations"].isfinite().all()
        assert store.meta.non_finite_rows.count == int(e.sum())
        assert all(".txt): " in text for text in store.meta.non_finite_rows.first)
    index = everything["documents"][e].min()
    assert any(
        text.startswith(f"document {index} (") for text in stores[0].meta.non_finite_rows.first
    )


def test_a_chunk_of_nothing_finite_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_sae.lm import load

    run_hooks = load.run_hooks
    monkeypatch.setattr(
        load, "run_hooks", lambda *given: {h: v * torch.nan for h, v in run_hooks(*given).items()}
    )
    with pytest.raises(UserError, match="bfloat16"):
        harvest(recipe(folder), tmp_path)


def test_room_is_asked_for_before_the_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("U", (), {"free": 100_000}))
    with pytest.raises(UserError) as error:
        harvest(recipe(folder, rows=1_000_000), tmp_path)
    needed = 1_000_000 * (16 * 2 + 12) * len(HOOKS)  # 132 MB
    assert f"{needed / 1e6:.1f} MB are needed" in str(error.value)
    assert "100.0 kB free" in str(error.value)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_progress(folder: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    chunks: list[tuple[int, bool]] = []
    asked = recipe(folder, rows=900)
    harvest(asked, tmp_path, on_progress=seen.append, on_chunk=lambda *c: chunks.append(c))
    assert [now.rows for now in seen] == sorted(now.rows for now in seen)
    assert (seen[-1].rows, seen[-1].rows_total, seen[-1].seconds_left) == (900, 900, 0)
    assert all(now.rows_per_second > 0 for now in seen)
    assert [index for index, _ in chunks] == list(range(len(chunks)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hooks": ("blocks.9.hook_mlp_out",)}, "no such hook"),
        ({"hooks": ("blocks.0.attn.hook_pattern",)}, "one vector per token"),
        ({"context": 65, "chunk_rows": 65}, "longer than"),
        ({"held_out": 0.5, "dataset": "one"}, "single document"),
    ],
)
def test_what_cannot_be_harvested(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if changes.get("dataset") == "one":
        changes = {**changes, "dataset": str(folder / "text" / "00.txt")}
    with pytest.raises(UserError, match=message):
        harvest(recipe(folder, **changes), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


# --- recipes and the command's errors


@pytest.mark.parametrize("name", builtin.names("activations"))
def test_every_recipe_that_ships(name: str) -> None:
    shipped = load_recipe(name)
    assert shipped.name == name
    assert load_recipe(builtin.folder("activations") / f"{name}.toml") == shipped
    assert {"hook", "seed", "rows", "dtype"} <= set(shipped.source("h"))


def test_the_embedded_recipe_fits_the_embedded_model() -> None:
    shipped = load_recipe("embedded")
    assert widths(shipped) == dict.fromkeys(shipped.hooks, 128)


@pytest.mark.parametrize(
    ("line", "where", "allowed"),
    [
        ("contxt = 3", "contxt", "did you mean 'context'?"),
        ("chunk_rows = 10", "chunk_rows", "at least one context: 256 rows"),
        ("held_out = 1.0", "held_out", "less than 1"),
        ('dtype = "float8"', "dtype", "'float16', 'bfloat16' or 'float32'"),
        ('name = "a/b"', "name", "without path separators"),
        ("rows = 1", "rows", "greater than or equal to 2"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, line: str, where: str, allowed: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'model = "m"\ndataset = "d"\nhooks = ["h"]\n{line}\n')
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert f"{path}: {where}" in str(error.value)
    assert allowed in str(error.value)


def test_options_replace_fields(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('model = "m"\ndataset = "d"\nhooks = ["h"]\n')
    replaced = load_recipe(path, {"rows": 5, "dtype": None, "hooks": ["a", "b"]})
    assert (replaced.name, replaced.rows, replaced.hooks) == ("mine", 5, ("a", "b"))
    assert replaced.dtype == "float16"
    with pytest.raises(UserError, match="hook names, each once"):
        load_recipe(path, {"hooks": ["a", "a"]})
    alone = load_recipe(None, {"model": "o/gpt", "dataset": "d", "hooks": ["h"]})
    assert alone.name == "gpt"
    with pytest.raises(UserError, match="required"):
        load_recipe(None, {"model": "m"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embeded"], "did you mean 'embedded'?"),
        ([], "python -m ensemble_sae.harvest embedded"),
        (["a.npy", "b.npy"], "--from-npy"),
        (["--from-npy", "a.npy"], "--name"),
        (["--from-npy", "nowhere.npy", "--name", "n"], "missing"),
        (["--from-npy", "a.npy", "--name", "n", "--dtype", "int8"], "float16, bfloat16"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], message: str) -> None:
    import typer
    from typer.testing import CliRunner

    from ensemble_sae.harvest import main

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
