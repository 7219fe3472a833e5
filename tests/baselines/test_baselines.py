"""Every baseline as an `Sae`, and what each is known for."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from making import rows as normal_rows
from torch import Tensor

from ensemble_sae.baselines import BASELINES, components, fit, pursued
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError
from ensemble_sae.randomness import generator
from ensemble_sae.signatures.parts import random_directions

D, N, K = 16, 24, 3

QUICK: dict[str, dict[str, Any]] = {
    "ica": {"max_iter": 50},
    "nmf": {"max_iter": 20},
    "sparse_pca": {"max_rows": 100},
    "rica": {"steps": 20, "batch_size": 128},
    "ksvd_omp": {"iterations": 3, "k": K},
    "ksvd_nonnegative": {"iterations": 3, "k": K},
}
every = pytest.mark.parametrize("name", BASELINES)


def planted(count: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows with three active features each, and the features `[24, 16]`."""
    draw = generator(seed, "planted")
    truth = random_directions(N, D, draw)
    active = torch.rand(count, N, generator=draw).topk(K).indices
    code = torch.zeros(count, N).scatter_(1, active, 0.5 + torch.rand(count, K, generator=draw))
    return code @ truth, truth


def quick(name: str, rows: Tensor, n_dict: int = N, **options: Any) -> Any:
    if name == "kmedoids":
        pytest.importorskip("kmedoids")
    return fit(name, rows, n_dict, **{**QUICK.get(name, {}), **options})


def unexplained(rows: Tensor, reconstruction: Tensor) -> float:
    return float((reconstruction - rows).square().sum() / (rows - rows.mean(0)).square().sum())


@every
def test_a_baseline_is_an_sae(name: str) -> None:
    rows, _ = planted()
    sae = quick(name, rows)
    n = sae.config.n_dict
    assert n == (D if name in ("neuron_basis", "rectified_basis", "pca", "ica") else N), n
    assert (sae.config.name, sae.config.d_activation, sae.config.seed) == (name, D, 0)
    assert sae.config.dict_ratio == n / D
    assert sae.dictionary.shape == (n, D)
    torch.testing.assert_close(sae.dictionary.norm(dim=1), torch.ones(n))
    code = sae.encode(rows.reshape(2, 300, D))
    assert code.shape == (2, 300, n)
    torch.testing.assert_close(sae(rows), sae.decode(code).reshape(600, D))
    assert torch.isfinite(code).all()


@every
def test_equal_seeds_give_equal_dictionaries(name: str) -> None:
    rows, _ = planted()
    first, again = (quick(name, rows, seed=3) for _ in range(2))
    assert torch.equal(first.dictionary, again.dictionary)
    assert first.config == again.config


@pytest.mark.parametrize("name", ["random", "ica", "kmeans", "kmedoids", "rica", "ksvd_omp"])
def test_other_seeds_give_other_dictionaries(name: str) -> None:
    rows, _ = planted()
    assert not torch.equal(quick(name, rows).dictionary, quick(name, rows, seed=1).dictionary)


@every
def test_rows_of_half_precision_are_learned_from(name: str) -> None:
    rows, _ = planted(100)
    sae = quick(name, rows.half())
    assert sae(rows.half()).dtype == torch.float32


@pytest.mark.parametrize("name", ["neuron_basis", "pca", "ica"])
@pytest.mark.parametrize("n_dict", [D, 10 * D])
def test_all_components_reconstruct_exactly(name: str, n_dict: int) -> None:
    rows = planted()[0] + 2
    assert unexplained(rows, quick(name, rows, n_dict)(rows)) < 1e-9


def test_pca_keeps_the_directions_of_most_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "PCA_BLOCK", 150)
    scale = torch.tensor([9.0, 5.0, 2.0, 0.1, 0.1, 0.1])
    turned = torch.linalg.qr(normal_rows(6, 6)).Q.float()
    rows = normal_rows(1001, 6, dtype=torch.float32) * scale @ turned + 3
    sae = fit("pca", rows, 3)
    exact = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:3]
    torch.testing.assert_close((sae.dictionary * exact).sum(1).abs(), torch.ones(3))
    assert unexplained(rows, sae(rows)) < 1e-3


@pytest.mark.parametrize("which", ["mixing", "unmixing"])
def test_ica_finds_independent_sources(which: str) -> None:
    draw = generator(0, "sources")
    sources = torch.rand(4000, 4, generator=draw)
    mixing = torch.randn(4, 4, generator=draw)
    sae = fit("ica", sources @ mixing, 4, which=which)
    truth = mixing if which == "mixing" else torch.linalg.inv(mixing).T
    cosines = torch.nn.functional.normalize(truth, dim=1) @ sae.dictionary.T
    assert cosines.abs().amax(1).min() > 0.99
    assert sae.config.hyperparameters["converged"] is True
    assert unexplained(sources @ mixing, sae(sources @ mixing)) < 1e-9


def test_nmf_is_nonnegative_and_reads_the_positive_part() -> None:
    draw = generator(0, "parts")
    truth = torch.rand(5, D, generator=draw) * (torch.rand(5, D, generator=draw) < 0.4)
    rows = torch.rand(800, 5, generator=draw) @ truth
    sae = fit("nmf", rows, 5)
    assert min(sae.dictionary.min(), sae.encode(rows).min()) >= 0
    assert unexplained(rows, sae(rows)) < 0.05
    assert torch.equal(sae.encode(rows - 9 * (rows == 0)), sae.encode(rows))


def test_sparse_pca_has_zeros_and_leaves_out_atoms_that_are_zero() -> None:
    rows, _ = planted()
    few, many = (fit("sparse_pca", rows[:100], N, alpha=alpha) for alpha in (0.03, 0.6))
    assert (many.dictionary == 0).float().mean() > (few.dictionary == 0).float().mean() + 0.1
    assert many.config.n_dict < N
    with pytest.raises(UserError, match="alpha"):
        fit("sparse_pca", rows, N, alpha=1e4)


@pytest.mark.parametrize("name", ["kmeans", "kmedoids"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("centring", [False, True])
def test_clusters_are_found(name: str, metric: str, centring: bool) -> None:
    middles = 4 * random_directions(5, D, generator(0, "middles")) + 1
    label = torch.arange(500) % 5
    rows = middles[label] + 0.05 * normal_rows(500, D, dtype=torch.float32)
    sae = quick(name, rows, 5, metric=metric, centring=centring)
    code = sae.encode(rows)
    assert ((code != 0).sum(1) == 1).all()
    found = code.argmax(1)
    assert len({*zip(label.tolist(), found.tolist(), strict=True)}) == 5
    if metric == "euclidean":
        assert unexplained(rows, sae(rows)) < 0.01


def test_medoids_are_rows() -> None:
    rows, _ = planted(200)
    sae = quick("kmedoids", rows, 7)
    chosen = sae.params["decoder"]
    assert all((rows == medoid).all(1).any() for medoid in chosen)
    assert torch.equal(sae(chosen), chosen) or torch.allclose(sae(chosen), chosen)


def test_kmedoids_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kmedoids", None)
    with pytest.raises(UserError, match=r"ensemble-sae\[study\]"):
        fit("kmedoids", planted()[0], 5)


def test_the_rectified_basis_has_the_sparsity_asked_for() -> None:
    rows = normal_rows(2000, D, dtype=torch.float32)
    active = (fit("rectified_basis", rows, D, l0=2.0).encode(rows) > 0).sum(1).float().mean()
    assert active == pytest.approx(2, abs=0.01)
    plain = fit("rectified_basis", rows, D, l0=D)
    assert torch.equal(plain.encode(rows), rows.relu())


def test_rica_learns() -> None:
    rows, _ = planted()
    begun, trained = (fit("rica", rows, N, steps=steps, batch_size=200) for steps in (1, 300))
    assert unexplained(rows, trained(rows)) < 0.5 * unexplained(rows, begun(rows))


@pytest.mark.parametrize("name", ["ksvd_omp", "ksvd_nonnegative"])
def test_ksvd_recovers_a_planted_dictionary(name: str) -> None:
    rows, truth = planted(1500)
    seen: list[float] = []
    sae = fit(name, rows, N, k=K, iterations=20, on_progress=lambda _, left: seen.append(left))
    cosines = truth @ sae.dictionary.T
    assert cosines.abs().amax(1).mean() > 0.95
    assert len(seen) == 20
    assert seen[-1] < 0.3 * seen[0]
    assert ((sae.encode(rows) != 0).sum(1) <= K).all()
    if name == "ksvd_nonnegative":
        assert cosines.amax(1).mean() > 0.95
        assert sae.encode(rows).min() >= 0


@pytest.mark.parametrize("method", ["omp", "omp_nonnegative", "fista", "top_k"])
def test_a_dictionary_with_another_code(method: str) -> None:
    rows, truth = planted()
    sae = pursued(2 * truth, method, **({"l1": 0.01} if method == "fista" else {"k": K}))
    torch.testing.assert_close(sae.dictionary, truth)
    assert unexplained(rows, sae(rows)) < {"top_k": 1.5, "fista": 0.05}.get(method, 0.4)


@pytest.mark.parametrize(
    ("method", "numbers", "words"),
    [("opm", {}, "did you mean 'omp'"), ("omp", {"l1": 1.0}, "takes no such number")],
)
def test_pursuits_that_are_not_there(method: str, numbers: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pursued(torch.eye(3), method, **numbers)


@pytest.mark.parametrize(
    ("name", "rows", "n_dict", "options", "words"),
    [
        ("kmean", torch.eye(9, 2), 2, {}, "did you mean 'kmeans'"),
        ("kmeans", torch.eye(9, 2), 2, {"metrik": "cosine"}, "did you mean 'metric'"),
        ("pca", torch.eye(9, 2), 0, {}, "n_dict >= 1"),
        ("pca", torch.ones(9), 2, {}, r"\[9\]"),
        ("pca", torch.ones(0, 2), 2, {}, r"\[0, 2\]"),
        ("pca", torch.tensor([[0.0, 1], [1, torch.nan]]), 2, {}, "1 of 2 .* first at 1"),
        ("pca", torch.ones(9, 2), 2, {}, "9 rows"),
        ("nmf", -torch.eye(5, 4), 2, {}, "positive entries"),
        ("pca", torch.eye(2, 4), 3, {}, "2 rows"),
        ("kmeans", torch.eye(2, 4), 3, {}, "2 rows"),
        ("kmeans", torch.eye(5, 4), 3, {"metric": "angle"}, "euclidean, cosine"),
        ("kmedoids", torch.eye(5, 4), 3, {"max_rows": 10**6}, "at most 20,000"),
        ("ica", torch.eye(5, 4), 3, {"which": "both"}, "mixing, unmixing"),
        ("rectified_basis", torch.eye(5, 4), 3, {"l0": 5.0}, r"\(0, 4\]"),
        ("ksvd_omp", torch.eye(5, 4), 3, {"k": 4}, r"1\.\.3"),
    ],
)
def test_mistakes_are_explained(
    name: str, rows: Tensor, n_dict: int, options: dict[str, Any], words: str
) -> None:
    if name == "kmedoids":
        pytest.importorskip("kmedoids")
    with pytest.raises(UserError, match=words):
        fit(name, rows, n_dict, **options)


def test_a_fit_tells_convergence_and_passes_other_warnings_on() -> None:
    from sklearn.exceptions import ConvergenceWarning

    class Model:
        def __init__(self, *categories: type[Warning]) -> None:
            self.categories = categories

        def fit(self, array: Any) -> None:
            for category in self.categories:
                warnings.warn("seen", category, stacklevel=1)

    array = torch.ones(1, 1).numpy()
    assert components.fitted(Model(), array)
    assert not components.fitted(Model(ConvergenceWarning), array)
    with pytest.warns(UserWarning, match="seen"):
        assert components.fitted(Model(UserWarning), array)


def test_a_store_is_read_chunk_by_chunk(tmp_path):
    """PCA sees all chunks; what a store's rows give is what the rows themselves give."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(900, 6, generator=draw) @ torch.randn(6, 6, generator=draw)
    store = ChunkStore.write(tmp_path, rows, chunk_rows=300, held_out=0, dtype="float32")
    together = torch.cat([store.activations(chunk.index) for chunk in store.chunks()])
    streamed, whole = fit("pca", store, 6), fit("pca", together, 6)
    cosines = (streamed.dictionary * whole.dictionary).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(6), atol=1e-3, rtol=0)
    first = store.activations(store.chunks()[0].index)
    assert torch.equal(fit("kmeans", store, 4).dictionary, fit("kmeans", first, 4).dictionary)
