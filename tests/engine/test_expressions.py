"""Members of several hook points where the engine looks after the stores of single ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slow
import small
import torch

import ensemble_sae
from ensemble_sae.data.location import store_path
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.dispatch.schedule import Item, Round
from ensemble_sae.engine import harvesting, stores
from ensemble_sae.engine.discarding import MARK, Discard, refuse_discarded
from ensemble_sae.errors import UserError
from ensemble_sae.run import Run
from ensemble_sae.sweep.schema import Activations

HOOKS = ("uncorrelated", "correlated")
RECIPE = """
kind = "synthetic"
name = "little"
d_activation = 8
n_features = 16
mean_active = 3
rows = 1_600
chunk_rows = 256
held_out = 0.1
"""
SWEEP = """
name = "streamed"
activations = {{ recipe = "{recipe}", normalise = "standard" }}
train = {{ batch_size = 32 }}
[grid]
signature = "untied"
hook = ["correlated", "correlated + uncorrelated"]
n_dict = 16
l1 = [1e-3, 1e-2]
"""


def write(folder: Path) -> list[ChunkStore]:
    return [
        ChunkStore.write(folder / hook, torch.randn(300, d), chunk_rows=64, held_out=0.2)
        for hook, d in (("a", 4), ("b", 3), ("c", 2))
    ]


def test_a_store_may_not_be_called_like_an_expression(tmp_path: Path) -> None:
    ChunkStore.write(tmp_path / "folder" / "a+b", torch.randn(10, 2))
    for folder in (tmp_path / "folder", tmp_path / "folder" / "a+b"):
        with pytest.raises(UserError, match=r"taken for several(.|\n)*'a\+b'"):
            stores.locate(Activations(store=str(folder)), tmp_path)


def test_the_stores_behind_hooks(tmp_path: Path) -> None:
    write(tmp_path)
    sources = stores.locate(Activations(store=str(tmp_path)), tmp_path)
    assert sources.widths == {"a": 4, "b": 3, "c": 2}
    hooks = {"c", "b", "b + a", "a -> b"}
    opened = sources.open(hooks)
    assert list(opened) == ["a", "b", "c"]
    rows = stores.rows_of(hooks, opened)
    assert {hook: store.d_activation for hook, store in rows.items()} == {
        "b": 3,
        "c": 2,
        "a -> b": 7,
        "b + a": 7,
    }
    assert list(rows) == ["b", "c", "a -> b", "b + a"]
    assert rows["b"] is opened["b"]
    assert list(sources.open({"a -> b"})) == ["a", "b"]


def test_a_chunk_is_kept_while_a_hook_still_reads_it(tmp_path: Path) -> None:
    opened = {store.path.name: store for store in write(tmp_path)}
    first, second, *_ = [chunk.index for chunk in opened["a"].chunks()]

    def round(number: int, **chunks: int) -> Round:
        names = {"a": "a", "ab": "a -> b", "ca": "c + a"}
        return Round(number, {names[hook]: Item(0, chunk) for hook, chunk in chunks.items()})

    rounds = [
        round(0, a=first, ab=first, ca=second),
        round(1, a=second, ab=second),
        round(2, ca=first),
    ]
    done = 0
    kept: Any = SimpleNamespace(all=lambda: [SimpleNamespace(position=SimpleNamespace(round=done))])
    discard = Discard(opened, ["a", "a -> b", "c + a"], lambda: rounds, kept)
    gone = {}
    for done in (1, 2, 3):
        discard.saved(kept.all()[0])
        gone[done] = {
            (hook, index)
            for hook, store in opened.items()
            for index in (first, second)
            if not (store.path / store.meta.chunks[index].file).exists()
        }
    assert gone[1] == {("b", first), ("c", second)}
    assert gone[2] == gone[1] | {("b", second), ("a", second)}
    assert gone[3] == gone[2] | {("a", first), ("c", first)}
    assert (tmp_path / "b" / MARK).is_file()
    with pytest.raises(UserError, match=r"discarded(.|\n)*/b/chunk-"):
        refuse_discarded({"b": opened["b"]}, [Round(0, {"b": Item(0, first)})], "little")
    with pytest.raises(UserError, match=r"discarded(.|\n)*/(a|b)/chunk-"):
        refuse_discarded(opened, [Round(0, {"a -> b": Item(0, first)})], "little")


def test_beside_the_harvest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second store is written when the first is complete: what is joined comes with it."""
    monkeypatch.setattr(harvesting, "_harvest", slow.harvest)
    monkeypatch.setenv("HARVEST_PAUSE_S", "1.0")
    (tmp_path / "little.toml").write_text(RECIPE, encoding="utf-8")
    sweep = tmp_path / "streamed.toml"
    sweep.write_text(SWEEP.format(recipe=tmp_path / "little.toml"), encoding="utf-8")

    def train(name: str, **options: Any) -> Run:
        data = {"data_dir": tmp_path / "data", "stream": True}
        return small.train(sweep, tmp_path / name, **data, **options)

    paths = [store_path(tmp_path / "data", "little", hook) for hook in HOOKS]
    unfinished: list[bool] = []
    watch = small.Watch(
        saved=lambda _: unfinished.append(not ChunkStore.open(paths[1]).meta.complete)
    )
    beside = train("beside", observer=watch)
    assert unfinished[0], "a chunk is trained on before the last one is there"
    after = train("after", discard=True)
    small.assert_same_bits(after, beside)
    for store in map(ChunkStore.open, paths):
        assert not any((store.path / chunk.file).exists() for chunk in store.chunks())
        assert all((store.path / chunk.file).exists() for chunk in store.chunks(held_out=True))
    with pytest.raises(UserError, match="discarded"):
        train("again")
    assert ensemble_sae.load(beside.path).sae(2)(torch.zeros(1, 16)).shape == (1, 16)
