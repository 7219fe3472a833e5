"""Scores of positions against sums written out, and a dictionary whose features are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ensemble_sae.analysis.position_curves import along, position_axes, traced
from ensemble_sae.analysis.positions import PositionScores, enumerated, sampled
from ensemble_sae.data.units import Units
from ensemble_sae.errors import UserError
from ensemble_sae.run import Sae
from ensemble_sae.signatures import resolve
from ensemble_sae.sweep import Member

V, P, D, N = 11, 9, 6, 7
SPAN = (1, 6)


def sae_of(params: dict[str, Tensor], units: Units | None = None, widths: tuple[int, ...] = ()):
    n, d = params["encoder"].shape
    member = Member(
        0, "own", "untied", "A", d, n, n / d, 1e-3, None, 0, {"l1": 0.0}, widths=widths or (d,)
    )
    signature = resolve("untied")
    _, buffers = signature.init(d, n, generator=torch.Generator().manual_seed(0), l1=0.0)
    return Sae(member, signature, params, buffers, units or Units())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def sae() -> Sae:
    return random_sae()


def random_sae() -> Sae:
    decoder = torch.nn.functional.normalize(drawn(N, D, seed=3), dim=1)
    params = {"encoder": drawn(N, D, seed=1), "encoder_bias": drawn(N, seed=2), "decoder": decoder}
    return sae_of(params, Units(1.7, tuple(drawn(D, seed=4).tolist())))


@pytest.fixture
def grid() -> Tensor:
    """A row for every token and position, `[V, P, D]`; not a sum, so that both margins vary."""
    return drawn(V, P, D, seed=5)


def tiles(grid: Tensor, size: int):
    for ids in torch.arange(V).split(size):
        yield ids, grid[ids]


def codes(sae: Sae, grid: Tensor) -> np.ndarray:
    """a[t, p, f], one row at a time."""
    return np.array([[sae.encode(row).double().numpy() for row in rows] for rows in grid])


def slowly(a: np.ndarray, span: tuple[int, int]) -> dict[str, np.ndarray]:
    """Scores by loops over the definition."""
    inside = range(*span)
    found: dict[str, list[float]] = {k: [] for k in ("position", "peak", "token", "id", "share")}
    for f in range(a.shape[2]):
        by_position = {p: math.fsum(a[:, p, f]) / len(a) for p in inside}
        by_token = [math.fsum(a[t, p, f] for p in inside) / len(inside) for t in range(len(a))]
        found["position"].append(max(by_position.values()))
        found["peak"].append(max(by_position, key=lambda p: by_position[p]))
        found["token"].append(max(by_token))
        found["id"].append(by_token.index(max(by_token)))
        found["share"].append(np.var(list(by_position.values())) / np.var(a[:, inside, f]))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("size", [1, 4, V])
@pytest.mark.parametrize("span", [SPAN, (0, P)])
def test_scores_over_all_rows(sae: Sae, grid: Tensor, size: int, span: tuple[int, int]):
    given = None if span == (0, P) else span
    found = enumerated(sae, tiles(grid, size), given)
    a = codes(sae, grid)
    expected = slowly(a, span)
    assert found.span == span
    np.testing.assert_allclose(found.by_position, a.mean(0).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.position, expected["position"], rtol=1e-5)
    np.testing.assert_array_equal(found.peak, expected["peak"])
    np.testing.assert_allclose(found.token, expected["token"], rtol=1e-5)
    np.testing.assert_array_equal(found.token_id, expected["id"])
    np.testing.assert_allclose(found.share, expected["share"], rtol=1e-4)


def test_a_text_of_every_token_at_every_position_gives_the_same(sae: Sae, grid: Tensor):
    exact = enumerated(sae, tiles(grid, V), SPAN)
    t, p = torch.meshgrid(torch.arange(V), torch.arange(P), indexing="ij")
    order = torch.randperm(V * P, generator=torch.Generator().manual_seed(0))
    flat = (grid.flatten(0, 1)[order], t.flatten()[order], p.flatten()[order])
    batches = zip(*(values.split(13) for values in flat), strict=True)
    found = sampled(sae, batches, torch.arange(V), P, SPAN, least=1)
    for name in ("by_position", "token", "share", "position"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), msg=name)
    for name in ("token_id", "peak", "positional"):
        assert torch.equal(getattr(found, name), getattr(exact, name))


def test_rare_tokens_and_empty_positions_are_left_out(sae: Sae):
    rows, ids = drawn(40, D, seed=8), torch.tensor([3] * 20 + [5] * 19 + [7])
    at = torch.tensor([1, 2, 4, 5] * 10)
    found = sampled(sae, [(rows, ids, at)], torch.tensor([7, 5, 3]), P, SPAN, least=16)
    code = sae.encode(rows).double()
    assert found.by_position[:, [0, 3, 6, 7, 8]].isnan().all()
    assert not found.by_position[:, [1, 2, 4, 5]].isnan().any()
    means = torch.stack([code[:20].mean(0), code[20:39].mean(0)])
    torch.testing.assert_close(found.token, means.amax(0).float())
    assert torch.equal(found.token_id, torch.tensor([3, 5])[means.argmax(0)])
    assert set(found.peak.tolist()) <= {1, 2, 4, 5}
    none = sampled(sae, [(rows, ids, at)], torch.tensor([7]), P, SPAN, least=16)
    assert none.token.isnan().all()
    assert not none.positional.any()
    with pytest.raises(UserError, match="no rows"):
        sampled(sae, [(rows, ids, torch.zeros_like(at))], torch.tensor([3]), P, SPAN)
    with pytest.raises(UserError, match="no rows"):
        enumerated(sae, [])


def known_sae() -> tuple[Sae, Tensor, Tensor]:
    """Tokens and positions on axes of their own, and a dictionary that knows both.

    Features 0 to 3 are the four tokens, feature 4 is active at the first two positions, feature 5
    grows with the position, feature 6 is silent.
    """
    tokens = torch.cat([3 * torch.eye(4), torch.zeros(4, 2)], 1)
    early = torch.tensor([2.0, 2.0, 0, 0, 0, 0])
    late = torch.arange(6) / 2
    positions = torch.cat([torch.zeros(6, 4), early[:, None], late[:, None]], 1)
    atoms = torch.cat([torch.eye(6), torch.eye(6)[:1]])
    bias = torch.zeros(7)
    bias[6] = -100
    params = {"encoder": atoms.clone(), "encoder_bias": bias, "decoder": atoms.clone()}
    return sae_of(params), tokens, positions


def all_of(tokens: Tensor, positions: Tensor):
    yield torch.arange(len(tokens)), tokens[:, None] + positions


def test_known_features_are_told_apart():
    sae, tokens, positions = known_sae()
    found = enumerated(sae, all_of(tokens, positions))
    assert found.positional.tolist() == [False] * 4 + [True] * 2 + [False]
    assert found.by_peak.tolist() == [4, 5]
    assert found.peak[[4, 5]].tolist() == [0, 5]
    torch.testing.assert_close(found.position, torch.tensor([0.75] * 4 + [2, 2.5, 0]))
    torch.testing.assert_close(found.token, torch.tensor([3.0] * 4 + [2 / 3, 1.25, 0]))
    assert found.token_id[:4].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(found.share[:6], torch.tensor([0.0] * 4 + [1, 1]))
    assert found.share[6].isnan()


def test_what_the_positions_are_told_by():
    sae, tokens, positions = known_sae()
    found = enumerated(sae, all_of(tokens, positions), (0, 4))
    whole = traced(sae, found.by_position, torch.tensor([4, 5]), positions, (0, 4))
    assert whole.explained == pytest.approx(1)
    assert whole.error[4:].abs().max() < 1e-6  # this dictionary goes on as the positions do
    half = traced(sae, found.by_position, torch.tensor([4]), positions, (0, 4))
    centred = positions[:4].double() - positions[:4].double().mean(0)
    parts = centred.square().sum(0)
    assert half.explained == pytest.approx(float(parts[4] / parts.sum()))
    none = traced(sae, found.by_position, torch.tensor([], dtype=torch.int64), positions, (0, 4))
    assert none.explained == pytest.approx(0)


def test_parts_are_in_the_units_of_the_rows(sae: Sae):
    """The sum of a code's atoms, times the scale; the shift is no part of them."""
    by_position = drawn(N, P, seed=11).abs()
    found = traced(sae, by_position, torch.tensor([1, 4]), drawn(P, D), SPAN)
    atoms = sae.dictionary[[1, 4]]
    torch.testing.assert_close(found.told, 1.7 * by_position[[1, 4]].T @ atoms)


def test_axes_are_those_of_an_eigendecomposition():
    positions = drawn(P, D, seed=6)
    found = position_axes(positions, SPAN)
    points = positions[1:6].double().numpy()
    values, vectors = np.linalg.eigh(np.cov(points.T))
    order = values.argsort()[::-1][:3]
    np.testing.assert_allclose(found.share, values[order] / values.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        np.abs(np.sum(found.axes.numpy() * vectors[:, order].T, 1)), 1, rtol=1e-6
    )
    placed = found.place(positions)
    expected = (positions.double().numpy() - points.mean(0)) @ found.axes.numpy().T
    np.testing.assert_allclose(placed, expected, atol=1e-12)


def test_curves_along_positions(sae: Sae):
    rows, at = drawn(60, D, seed=9), torch.arange(60) % 7
    ids = torch.zeros(60, dtype=torch.int64)
    chosen = torch.tensor([2, 5, 0])
    batches = zip(*(values.split(17) for values in (rows, ids, at)), strict=True)
    found = along(sae, batches, P, SPAN, chosen)
    code, error = sae.encode(rows).double(), (sae(rows) - rows).double().square().sum(1)
    inside = rows[(at >= 1) & (at < 6)].double().numpy()
    assert found.variance == pytest.approx(inside.var(0).sum())
    for p in range(7):
        own = at == p
        assert found.rows[p] == own.sum()
        assert found.error[p] == pytest.approx(float(error[own].mean()))
        assert found.fvu[p] == pytest.approx(float(error[own].mean() / inside.var(0).sum()))
        assert found.l0[p] == pytest.approx(float((code[own] != 0).sum(1).double().mean()))
        shares = (code[own][:, chosen] != 0).float().mean(0)
        torch.testing.assert_close(found.active[:, p], shares)
        torch.testing.assert_close(found.activation[:, p], code[own][:, chosen].mean(0).float())
    assert found.fvu[7:].isnan().all()
    within = (at >= 2) & (at < 7)
    assert found.mean_fvu(2, 9) == pytest.approx(float(error[within].mean() / found.variance))
    assert found.mean_l0(2, 9) == pytest.approx(float((code[within] != 0).sum(1).double().mean()))


def test_what_has_no_error_along_positions():
    sae = random_sae()
    row = (drawn(1, D), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(UserError, match="no rows"):
        along(sae, [row], P, SPAN)
    assert along(sae, [row], P, (0, 2)).active.shape == (0, P)
    predicts = sae_of(dict(sae.params), widths=(D, 4))
    with pytest.raises(UserError, match="predicts other rows"):
        along(predicts, [row], P, SPAN)


def test_scores_sort_by_peaks():
    by_position = torch.tensor([[0, 1.0, 5], [9, 1, 2], [0, 4, 0], [0, 7, 0]])
    token = torch.tensor([1.0, 1, 5, 1])
    scores = PositionScores(by_position, token, torch.zeros(4), torch.zeros(4), (1, 3))
    assert scores.position.tolist() == [5, 2, 4, 7]  # position 0 is not counted
    assert scores.by_peak.tolist() == [3, 0, 1]
