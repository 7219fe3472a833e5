"""The chunk store: what is written comes back, and every kind of damage is named."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from ensemble_sae.data import disk
from ensemble_sae.data.arrays import map_npy
from ensemble_sae.data.location import data_dir, store_path
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.writer import StoreWriter
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import TEMPORARY, write_tensors
from ensemble_sae.harvest import main


def rows_of(store: ChunkStore, held_out: bool = False) -> torch.Tensor:
    return torch.cat([store.activations(chunk.index) for chunk in store.chunks(held_out)])


def by_first(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows[:, 0].argsort()]


def numbered(n: int, d: int = 3) -> np.ndarray:
    """Distinct rows that float16 holds exactly."""
    return np.arange(n)[:, None] + np.array([0.0] + [1 / 8] * (d - 1)) * np.arange(d)


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return ChunkStore.write(tmp_path / "s", numbered(100), chunk_rows=30, held_out=0.1)


# --- what is written comes back


@pytest.mark.parametrize("kind", ["numpy", "torch", "iterator", "list of mixed lengths"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_row_comes_back_once(tmp_path: Path, kind: str, dtype: str) -> None:
    array = numbered(200)
    given = {
        "numpy": array,
        "torch": torch.tensor(array),
        "iterator": (torch.tensor(array[i : i + 7]) for i in range(0, 200, 7)),
        "list of mixed lengths": [array[:1], array[1:1], torch.tensor(array[1:150]), array[150:]],
    }[kind]
    store = ChunkStore.write(tmp_path / "s", given, chunk_rows=64, held_out=0.1, dtype=dtype)
    expected = torch.tensor(array).to(getattr(torch, dtype))
    found = torch.cat([rows_of(store), rows_of(store, held_out=True)])
    assert found.dtype == expected.dtype
    assert torch.equal(by_first(found), by_first(expected))
    assert (store.rows(), store.rows(held_out=True)) == (180, 20)
    assert [chunk.rows for chunk in store.chunks()] == [64, 64, 52]
    assert store.meta.complete
    assert store.columns(0) == {}


def test_rows_are_shuffled_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    stores = {
        seed: ChunkStore.write(tmp_path / name, numbered(500), seed=seed)
        for seed, name in ((0, "a"), (1, "b"))
    }
    again = ChunkStore.write(tmp_path / "c", [numbered(500)[:3], numbered(500)[3:]], seed=0)
    order = rows_of(stores[0])[:, 0]
    assert (order.diff() < 0).float().mean() > 0.4
    assert not torch.equal(order, rows_of(stores[1])[:, 0])
    assert [c.sha256 for c in again.meta.chunks] == [c.sha256 for c in stores[0].meta.chunks]


def test_dtype_follows_the_array(tmp_path: Path) -> None:
    for dtype, stored in (
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
        (torch.float32, "float32"),
        (torch.float64, "float32"),
    ):
        rows = torch.ones(4, 2, dtype=dtype)
        store = ChunkStore.write(tmp_path / "s", rows, overwrite=True)
        assert store.meta.dtype == stored


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    """A mean far from zero, where the textbook E[x^2] - E[x]^2 has no digit left."""
    array = np.random.default_rng(0).normal(3000, 1e-2, (20_000, 5)) * [1, 2, 3, 4, -5]
    array = array.astype(np.float32)
    store = ChunkStore.write(tmp_path / "s", array, chunk_rows=3000, held_out=0.2)
    training = rows_of(store).double().numpy()
    assert len(training) == 16_000
    np.testing.assert_allclose(store.meta.mean, training.mean(0), rtol=1e-13)
    np.testing.assert_allclose(store.meta.variance, training.var(0), rtol=1e-9)
    centred = training - training.mean(0)
    expected = np.sqrt((centred**2).sum(1).mean() / 5)
    assert store.scale == pytest.approx(expected, rel=1e-9)
    assert store.mean.dtype == torch.float32
    assert store.variance.shape == (5,)


def test_one_row(tmp_path: Path) -> None:
    store = ChunkStore.write(tmp_path / "s", np.ones((1, 4), np.float32))
    assert (store.rows(), store.rows(held_out=True), store.scale) == (1, 0, 0.0)


def test_two_rows_are_one_on_each_side(tmp_path: Path) -> None:
    store = ChunkStore.write(tmp_path / "s", numbered(2))
    assert (store.rows(), store.rows(held_out=True)) == (1, 1)


@pytest.mark.parametrize("share", [0, 0.01, 0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n", [3, 19, 64, 200, 333])
def test_held_out_share(tmp_path: Path, share: float, n: int) -> None:
    store = ChunkStore.write(tmp_path / "s", numbered(n), chunk_rows=17, held_out=share)
    held = store.rows(held_out=True)
    assert held + store.rows() == n
    assert abs(held - n * share) <= 1
    assert (held > 0) == (share > 0)
    assert store.rows() > 0
    assert max(chunk.rows for chunk in store.meta.chunks) <= 17


@pytest.mark.parametrize("given", [np.empty((0, 4), np.float32), [], np.full((5, 2), np.nan)])
def test_no_rows_is_an_error_and_leaves_no_store(tmp_path: Path, given: object) -> None:
    with pytest.raises(UserError, match="no rows"):
        ChunkStore.write(tmp_path / "s", given)
    with pytest.raises(UserError, match="no chunk store"):
        ChunkStore.open(tmp_path / "s")


def test_non_finite_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    array = numbered(100).astype(np.float32)
    array[7, 1], array[50, 0], array[99, 2] = np.nan, np.inf, 70_000  # the last only in float16
    store = ChunkStore.write(tmp_path / "s", array, chunk_rows=20, dtype="float16", held_out=0.1)
    assert store.meta.rows == 97
    assert store.meta.non_finite_rows.count == 3
    assert store.meta.non_finite_rows.first == ["row 7", "row 50", "row 99"]
    found = torch.cat([rows_of(store), rows_of(store, held_out=True)])
    assert torch.equal(
        by_first(found)[:, 0], torch.tensor(np.delete(array, [7, 50, 99], 0)).half()[:, 0]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((4, 2), np.int64), "floating point"),
        (np.ones(4, np.float32), "two dimensions"),
        ([torch.ones(4, 2), torch.ones(3, 5)], "begins at row 4"),
    ],
)
def test_arrays_that_are_no_activations(tmp_path: Path, given: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChunkStore.write(tmp_path / "s", given)


def test_write_does_not_replace_unless_told(store: ChunkStore) -> None:
    (store.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="here already"):
        ChunkStore.write(store.path, numbered(5))
    replaced = ChunkStore.write(store.path, numbered(5), overwrite=True)
    assert replaced.meta.rows == 5
    assert sorted(p.name for p in store.path.iterdir()) == [
        "chunk-00000.safetensors",
        "chunk-00001.safetensors",
        "meta.json",
        "notes.txt",
    ]


def test_an_interrupted_write_is_replaced(tmp_path: Path, store: ChunkStore) -> None:
    def broken() -> object:
        yield numbered(50)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ChunkStore.write(tmp_path / "t", broken(), chunk_rows=30, held_out=0.1)
    assert not ChunkStore.open(tmp_path / "t").meta.complete
    again = ChunkStore.write(tmp_path / "t", numbered(100), chunk_rows=30, held_out=0.1)
    assert again.meta == store.meta


def test_chunks_are_mapped_not_copied(tmp_path: Path) -> None:
    store = ChunkStore.write(tmp_path / "s", np.ones((200_000, 64), np.float32), chunk_rows=1 << 20)

    def anonymous() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    before = anonymous()
    rows = store.activations(0)
    assert rows.float().sum() == rows.numel()
    assert anonymous() - before < 10_000  # kB, of 48,000


# --- the writer


def columns(n: int, start: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.arange(start, start + n, dtype=torch.int32)
    return {
        "activations": torch.randn(n, 4, generator=torch.Generator().manual_seed(start)),
        "tokens": ids,
        "positions": ids % 8,
        "documents": ids // 8,
    }


def writer(path: Path, **changes: object) -> StoreWriter:
    settings = {"d_activation": 4, "dtype": "float32", "source": {"model": "m", "seed": 3}}
    return StoreWriter(path, **{**settings, **changes})  # type: ignore[arg-type]


def test_a_store_grows_before_its_readers_eyes(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as w:
        w.append(columns(10))
        store = ChunkStore.open(tmp_path / "s")
        assert (store.rows(), store.meta.complete) == (10, False)
        w.append(columns(6, start=10), held_out=True)
        assert store.rows(held_out=True) == 0
        assert store.refresh().rows(held_out=True) == 6
        w.leave_out(2, ["document 3"])
    assert store.refresh().meta.complete
    assert store.meta.non_finite_rows.count == 2
    for name, column in columns(6, start=10).items():
        stored = store.activations(1) if name == "activations" else store.columns(1)[name]
        assert torch.equal(stored, column)


def test_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    def append(w: StoreWriter, i: int) -> None:
        w.leave_out(i)
        w.append(columns(7 + i, start=100 * i), held_out=i == 1)

    with writer(tmp_path / "whole") as w:
        for i in range(4):
            append(w, i)
    for i in range(4):
        with contextlib.suppress(KeyboardInterrupt), writer(tmp_path / "parts") as w:
            assert len(w.chunks) == i
            append(w, i)
            (tmp_path / "parts" / f"{TEMPORARY}1-chunk-00009.safetensors").write_text("half")
            raise KeyboardInterrupt
        assert not ChunkStore.open(tmp_path / "parts").meta.complete
    with writer(tmp_path / "parts"):
        pass
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == files
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"d_activation": 5}, "d_activation"),
        ({"dtype": "float16"}, "dtype"),
        ({"source": {"model": "other", "seed": 3}}, "model"),
        ({"source": {"model": "m", "seed": 3, "extra": 1}}, "extra"),
    ],
)
def test_another_store_is_not_continued(
    tmp_path: Path, change: dict[str, object], where: str
) -> None:
    with writer(tmp_path / "s") as w:
        w.append(columns(3))
    with pytest.raises(UserError, match=f": {where}\n"), writer(tmp_path / "s", **change):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as w:
        w.append(columns(3))
        with pytest.raises(UserError, match="Another process"), writer(tmp_path / "s"):
            pass
    with writer(tmp_path / "s") as w:  # the lock is gone with its holder
        w.append(columns(3))


def test_the_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as w:
        w.append(columns(3))
        for wrong in (
            {"activations": torch.ones(3, 5)},
            {"activations": torch.ones(0, 4)},
            {"activations": torch.ones(3, 4).half()},
            {**columns(3), "tokens": torch.ones(4, dtype=torch.int32)},
        ):
            with pytest.raises(ValueError, match="expected"):
                w.append(wrong)
        with pytest.raises(UserError, match="non-finite"):
            w.append({"activations": torch.full((1, 4), torch.inf)})
    assert ChunkStore.open(tmp_path / "s").meta.rows == 3


def test_a_full_disk_keeps_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with writer(tmp_path / "s") as w:
        w.append(columns(3))
        with monkeypatch.context() as patch:
            patch.setattr("ensemble_sae.data.writer.write_tensors", full)
            with pytest.raises(UserError, match="disk is full"):
                w.append(columns(3))
    assert ChunkStore.open(tmp_path / "s").rows() == 3


def test_disk_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.check_disk(tmp_path / "not" / "yet", 1)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("U", (), {"free": 1_500_000}))
    with pytest.raises(UserError) as error:
        disk.check_disk(tmp_path, 3_000_000_000)
    assert "1.5 MB free" in str(error.value)
    assert "3.0 GB are needed" in str(error.value)
    with pytest.raises(UserError, match=r"4\.0 MB are needed"):
        ChunkStore.write(tmp_path / "s", np.ones((1000, 1000), np.float32))


# --- damage


def test_truncated(store: ChunkStore) -> None:
    file = store.path / store.meta.chunks[1].file
    file.write_bytes(file.read_bytes()[:-1])
    for read in (store.activations, store.columns, store.verify):
        with pytest.raises(CorruptFile, match=r"chunk-00001[^$]*bytes[^$]*bytes"):
            read(1)
    assert store.activations(0).shape == (30, 3)


def test_missing(store: ChunkStore) -> None:
    (store.path / store.meta.chunks[1].file).unlink()
    with pytest.raises(CorruptFile, match=r"chunk-00001[^$]*no such file"):
        store.activations(1)


def test_flipped_bit(store: ChunkStore) -> None:
    file = store.path / store.meta.chunks[0].file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    store.activations(0)
    with pytest.raises(CorruptFile, match="SHA-256") as error:
        store.activations(0, verify=True)
    assert file.name in str(error.value)
    assert store.meta.chunks[0].sha256 in str(error.value)


def test_damaged_header(store: ChunkStore) -> None:
    file = store.path / store.meta.chunks[0].file
    content = bytearray(file.read_bytes())
    content[8] = 0
    file.write_bytes(content)
    with pytest.raises(CorruptFile, match="chunk-00000"):
        store.activations(0)


def test_swapped(store: ChunkStore) -> None:
    a, b = (store.path / store.meta.chunks[i].file for i in (0, 1))
    a.rename(store.path / "x")
    b.rename(a)
    (store.path / "x").rename(b)
    for index in (0, 1):
        with pytest.raises(CorruptFile):
            store.activations(index, verify=True)


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        ({"activations": torch.ones(29, 3)}, r"\[29, 3\] float32"),
        ({"activations": torch.ones(30, 3, dtype=torch.int32)}, r"\[30, 3\] int32"),
        ({"rows": torch.ones(30, 3)}, "no such tensor"),
    ],
)
def test_wrong_content(store: ChunkStore, tensor: dict[str, torch.Tensor], found: str) -> None:
    path = store.path / store.meta.chunks[0].file
    write_tensors(path, tensor)
    edit(store, lambda meta: meta["chunks"][0].update(bytes=path.stat().st_size))
    pattern = rf"chunk-00000\.safetensors: activations[^$]*{found}[^$]*\[30, 3\] float32"
    with pytest.raises(CorruptFile, match=pattern):
        ChunkStore.open(store.path).activations(0)


def test_no_such_chunk(store: ChunkStore) -> None:
    for index in (-1, 5):
        with pytest.raises(UserError, match="no such chunk"):
            store.activations(index)


def edit(store: ChunkStore, change: object) -> None:
    path = store.path / "meta.json"
    meta = json.loads(path.read_text())
    change(meta)  # type: ignore[operator]
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda m: m.update(schema_version=2), "newer version"),
        (lambda m: m["chunks"][0].update(file="../chunk-00000.safetensors"), r"chunks\.0\.file"),
        (lambda m: m["chunks"][0].update(file="/etc/passwd"), r"chunks\.0\.file"),
        (lambda m: m["chunks"][0].update(file=".."), r"chunks\.0\.file"),
        (lambda m: m["chunks"][0].update(file=f"{TEMPORARY}x"), r"chunks\.0\.file"),
        (lambda m: m["chunks"][0].update(rows=31), "sum of the chunks"),
        (lambda m: m["chunks"][1].update(file=m["chunks"][0]["file"]), "of its own"),
        (lambda m: m["chunks"].pop(0), "numbered"),
        (lambda m: m.update(dtype="float8"), "dtype"),
        (lambda m: m.update(mean=[0.0]), "mean"),
        (lambda m: m.pop("rows"), "rows"),
        (lambda m: m.update(surprise=1), "surprise"),
    ],
)
def test_damaged_meta(store: ChunkStore, change: object, where: str) -> None:
    edit(store, change)
    with pytest.raises(CorruptFile, match=where) as error:
        ChunkStore.open(store.path)
    assert str(store.path / "meta.json") in str(error.value)


def test_meta_missing_or_no_json(store: ChunkStore, tmp_path: Path) -> None:
    (store.path / "meta.json").write_text("{")
    with pytest.raises(CorruptFile, match="JSON"):
        ChunkStore.open(store.path)
    (store.path / "meta.json").unlink()
    with pytest.raises(UserError, match=r"no meta\.json"):
        ChunkStore.open(store.path)
    with pytest.raises(UserError, match="no such folder"):
        ChunkStore.open(tmp_path / "nowhere")


# --- .npy files and places


def test_from_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbered(10).astype(">f4"))
    np.save(tmp_path / "b.npy", numbered(20)[10:])
    files = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    app = typer.Typer()
    app.command()(main)
    options = ["--data-dir", str(tmp_path / "data"), "--held-out", "0.25", "--dtype", "float16"]
    done = CliRunner().invoke(app, ["--from-npy", *files, "--name", "mine", *options])
    assert done.exit_code == 0, done.output
    assert "mine" in done.output
    store = ChunkStore.open(store_path(tmp_path / "data", "mine", "activations"))
    assert (store.rows(), store.rows(held_out=True)) == (15, 5)
    found = torch.cat([rows_of(store), rows_of(store, held_out=True)])
    assert torch.equal(by_first(found), torch.tensor(numbered(20)).half())


def test_npy_files_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptFile, match=r"o\.npy"):
        map_npy([tmp_path / "o.npy"])
    (tmp_path / "t.npy").write_text("no array")
    with pytest.raises(CorruptFile, match=r"t\.npy"):
        map_npy([tmp_path / "t.npy"])
    with pytest.raises(UserError, match="missing"):
        map_npy([tmp_path / "nowhere.npy"])
    np.save(tmp_path / "flat.npy", np.ones(3))
    with pytest.raises(CorruptFile, match=r"\[3\]"):
        map_npy([tmp_path / "flat.npy"])


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ENSEMBLE_SAE_DATA", raising=False)
    assert data_dir() == Path("data")
    monkeypatch.setenv("ENSEMBLE_SAE_DATA", str(tmp_path))
    assert data_dir() == tmp_path
    assert data_dir("here") == Path("here")
    assert store_path("d", "n", "blocks.0.hook_mlp_out") == Path("d/n/blocks.0.hook_mlp_out")
    for name in ("..", "a/b", ""):
        with pytest.raises(UserError, match="folder's name"):
            store_path("d", name, "h")
