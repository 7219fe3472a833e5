"""The synthetic rows are what their formulas say."""

from __future__ import annotations

import pytest
import torch

from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data import synthetic
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.synthetic import SyntheticStore
from ensemble_sae.errors import CorruptFile, UserError


def recipe(**changed) -> SyntheticRecipe:
    values = {
        "kind": "synthetic",
        "name": "toy",
        "d_activation": 24,
        "n_features": 40,
        "decay": 0.95,
        "mean_active": 4.0,
        "rows": 6000,
        "chunk_rows": 1024,
        "dtype": "float32",
    }
    return SyntheticRecipe.model_validate({**values, **changed})


def test_codes_are_sparse_uniform_and_fall_off_with_the_rank():
    made = synthetic.codes(recipe(), "uncorrelated", 60_000, 0)
    active = (made > 0).float().mean(0)
    expected = 0.95 ** torch.arange(40)
    expected *= 4.0 / expected.sum()
    torch.testing.assert_close(active, expected, atol=0.01, rtol=0.05)
    assert made.max() < 1
    assert made[made > 0].mean().item() == pytest.approx(0.5, abs=0.01)


def test_correlated_codes_have_the_same_mean_and_fall_off_too():
    active = synthetic.codes(recipe(), "correlated", 60_000, 0) > 0
    assert active.sum(1).float().mean().item() == pytest.approx(4.0, rel=0.02)
    assert active[:, :5].float().mean() > 3 * active[:, -5:].float().mean()


def test_correlated_features_follow_the_covariance():
    """Pairs whose z are strongly correlated occur together more often than the others."""
    made = recipe(n_features=6, decay=1.0, mean_active=1.5)
    active = (synthetic.codes(made, "correlated", 200_000, 0) > 0).double()
    factor = synthetic.covariance_factor(made).double()
    covariance = factor @ factor.T
    assert torch.linalg.eigvalsh(covariance)[0] > 0
    torch.testing.assert_close(covariance, covariance.T)
    pairs = torch.triu_indices(6, 6, 1)
    z = covariance / covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt())
    together = torch.stack([torch.corrcoef(active.T)[tuple(pairs)], z[tuple(pairs)]])
    assert torch.corrcoef(together)[0, 1] > 0.9


def test_rows_are_codes_times_unit_features_plus_noise():
    plain, noisy = recipe(), recipe(noise=0.1)
    truth = synthetic.ground_truth(plain)
    torch.testing.assert_close(truth.norm(dim=1), torch.ones(40))
    rows = synthetic.chunk_of_rows(plain, "uncorrelated", 500, 3)
    codes = synthetic.codes(plain, "uncorrelated", 500, 3)
    torch.testing.assert_close(rows, codes @ truth)
    difference = synthetic.chunk_of_rows(noisy, "uncorrelated", 500, 3) - rows
    assert difference.std().item() == pytest.approx(0.1, rel=0.05)


def test_an_interrupted_store_ends_with_the_same_files(tmp_path):
    whole = synthetic.harvest(recipe(), tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.rows > 3000:
            raise Stop

    with pytest.raises(Stop):
        synthetic.harvest(recipe(), tmp_path / "parts", on_progress=stop)
    assert not synthetic.finished(recipe(), tmp_path / "parts")
    parts = synthetic.harvest(recipe(), tmp_path / "parts")
    for a, b in zip(whole, parts, strict=True):
        assert [c.sha256 for c in a.meta.chunks] == [c.sha256 for c in b.meta.chunks]
        assert a.meta.mean == b.meta.mean
    assert whole[0].rows(held_out=True) == 300
    assert whole[0].rows() == 5700


def test_stores_of_another_recipe_are_refused(tmp_path):
    synthetic.harvest(recipe(), tmp_path)
    with pytest.raises(UserError, match="made from something else"):
        synthetic.harvest(recipe(decay=0.9), tmp_path)


def test_a_bad_key_of_a_synthetic_recipe_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('kind = "synthetic"\nrows = 100\ndecya = 0.5\n')
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert "did you mean 'decay'" in str(error.value)


def test_chunks_do_not_repeat(tmp_path):
    store = synthetic.harvest(recipe(hooks=["uncorrelated"]), tmp_path)[0]
    assert isinstance(store, ChunkStore)
    a, b = (store.activations(c.index) for c in store.chunks()[:2])
    assert not torch.equal(a, b)


@pytest.mark.parametrize("hook", ["uncorrelated", "correlated"])
def test_rows_made_when_read_are_those_that_would_be_written(tmp_path, hook):
    made = SyntheticStore.of(recipe(on_the_fly=True, noise=0.1), hook)
    synthetic.harvest(recipe(noise=0.1), tmp_path)
    written = ChunkStore.open(tmp_path / "toy" / hook)
    assert len(made.meta.chunks) == len(written.meta.chunks)
    for chunk in made.meta.chunks:
        assert torch.equal(made.activations(chunk.index), written.activations(chunk.index))
    torch.testing.assert_close(made.scale, written.scale, rtol=0.05, atol=0)


def test_a_store_that_is_made_when_read_takes_no_disk_and_opens_as_one(tmp_path):
    (first, _) = synthetic.harvest(recipe(on_the_fly=True), tmp_path)
    there = ChunkStore.open(first.path)
    assert isinstance(there, SyntheticStore)
    assert sorted(path.name for path in first.path.iterdir()) == ["meta.json", "truth.safetensors"]
    assert there.rows() == 5700
    assert there.rows(held_out=True) == 300
    assert torch.equal(there.activations(2, verify=True), first.activations(2))
    assert there.columns(0) == {}
    with pytest.raises(UserError, match="no such chunk"):
        there.activations(99)


def test_an_altered_description_is_found(tmp_path):
    (store, _) = synthetic.harvest(recipe(on_the_fly=True), tmp_path)
    path = store.path / "meta.json"
    path.write_text(path.read_text().replace('"decay": 0.95', '"decay": 0.96'))
    with pytest.raises(CorruptFile, match="altered"):
        ChunkStore.open(store.path).activations(0, verify=True)
    path.write_text(path.read_text().replace('"decay": 0.96', '"decay": "fast"'))
    with pytest.raises(CorruptFile, match=r"source\.decay"):
        ChunkStore.open(store.path).activations(0)


@pytest.mark.parametrize("hook", ["uncorrelated", "correlated"])
def test_rows_are_the_same_whatever_the_number_of_threads(hook):
    made = recipe(rows=20_000, chunk_rows=9000)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(synthetic.chunk_of_rows(made, hook, 9000, 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_the_truth_is_part_of_a_store(tmp_path, on_the_fly):
    (store, _) = synthetic.harvest(recipe(on_the_fly=on_the_fly), tmp_path)
    truth = ChunkStore.open(store.path).truth
    assert truth is not None
    assert torch.equal(truth.atoms, synthetic.ground_truth(recipe()))
    assert truth.frequency.sum().item() == pytest.approx(4.0)
    (store.path / "truth.safetensors").write_bytes(b"x" * 100)
    if on_the_fly:  # what makes the rows knows the truth as well
        found = ChunkStore.open(store.path).truth
        assert found is not None
        assert torch.equal(found.atoms, truth.atoms)
    else:
        with pytest.raises(CorruptFile, match="truth"):
            _ = ChunkStore.open(store.path).truth


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"decay": 0.5, "mean_active": 3}, "mean_active"), ({"rows": 2, "held_out": 0.9}, "held_out")],
)
def test_rows_that_cannot_be_drawn_are_refused(changed, named):
    with pytest.raises(ValueError) as error:
        recipe(**changed)
    assert named in str(error.value)


def test_features_are_as_frequent_as_is_said():
    made = recipe(decay=0.9, mean_active=5.0)
    for hook in made.hooks:
        active = (synthetic.codes(made, hook, 40_000, 0) > 0).float().mean(0)
        tolerance = 0.012 if hook == "uncorrelated" else 0.06
        torch.testing.assert_close(active, synthetic.frequencies(made), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("code", "mean", "square"),
    [
        ("uniform", 1 / 2, 1 / 3),
        ("constant", 1, 1),
        ("exponential", 1, 2),
        ("half_normal", 0.798, 1),
    ],
)
def test_amplitudes_have_their_distributions_moments(code, mean, square):
    made = synthetic.codes(recipe(code=code), "uncorrelated", 50_000, 0)
    found = made[made > 0].double()
    assert found.mean().item() == pytest.approx(mean, rel=0.02)
    assert found.square().mean().item() == pytest.approx(square, rel=0.03)
