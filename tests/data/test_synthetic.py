"""The synthetic rows are what their formulas say."""

from __future__ import annotations

import pytest
import torch

from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data import synthetic
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError


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
