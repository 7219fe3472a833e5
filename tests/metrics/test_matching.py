"""Matching against loops in float64, whatever the blocks; permutations are recovered."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from making import rows
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.metrics import matching
from ensemble_sae.metrics.matching import (
    by_frequency,
    closest,
    cosine_blocks,
    hungarian,
    mcs,
    mmcs,
    representedness,
    usable,
)

D = 6
BLOCKS = [(1024, 4096), (4, 5), (1, 1), (3, 64)]


def slow_closest(atoms: Tensor, others: Tensor, absolute: bool) -> tuple[list[float], list[int]]:
    cosines, indices = [], []
    for a in atoms.double().numpy():
        best, index = math.nan, -1
        for j, b in enumerate(others.double().numpy()):
            if all(np.isfinite(x).all() and x.any() for x in (a, b)):
                value = a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)
                value = abs(value) if absolute else value
                if index == -1 or value > best:
                    best, index = value, j
        cosines.append(best)
        indices.append(index)
    return cosines, indices


def spoilt(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Atoms of any norms among rows that are none."""
    atoms = rows(count, D, seed) * 10 ** rows(count, 1, seed + 1)
    atoms[2], atoms[-1] = 0, 0
    atoms[4, 1], atoms[5, 0] = math.nan, math.inf
    return atoms.to(dtype)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_closest_is_that_of_a_loop(
    blocks: tuple[int, int], dtype: torch.dtype, absolute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "ROWS", blocks[0])
    monkeypatch.setattr(matching, "COLUMNS", blocks[1])
    atoms, others = spoilt(13, 0, dtype), spoilt(17, 2, dtype)
    before = atoms.clone(), others.clone()
    found = closest(atoms, others, absolute=absolute)
    cosines, indices = slow_closest(atoms, others, absolute)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert found.cosine.dtype == dtype
    assert found.index.dtype == torch.int64
    assert found.cosine.tolist() == pytest.approx(cosines, abs=tolerance, nan_ok=True)
    assert found.index.tolist() == indices
    torch.testing.assert_close((atoms, others), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_of_equals_the_first_is_chosen(
    blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "ROWS", blocks[0])
    monkeypatch.setattr(matching, "COLUMNS", blocks[1])
    axes = torch.eye(3)
    others = torch.cat([torch.zeros(1, 3), -axes, axes, 2 * axes, axes])
    assert closest(axes, others).index.tolist() == [4, 5, 6]
    assert closest(axes, others, absolute=True).index.tolist() == [1, 2, 3]


def test_norms_do_not_matter_however_extreme() -> None:
    atoms, others = rows(5, D, 0, torch.float32), rows(7, D, 1, torch.float32)
    expected = closest(atoms, others)
    for scale in (1e-35, 1e37):
        found = closest(atoms * scale, others / scale)
        torch.testing.assert_close(found.cosine, expected.cosine, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.index, expected.index)
    least = torch.full((1, D), 1e-45)
    assert mcs(least, least).tolist() == pytest.approx([1.0])


def test_cosines_are_at_most_one() -> None:
    atoms = rows(200, D, 0, torch.float32)
    assert mcs(atoms, atoms).max() <= 1
    assert mcs(atoms, -atoms, absolute=True).max() <= 1
    assert mcs(atoms[:1], -atoms[:1]).min() >= -1


def test_what_is_left_where_there_are_no_atoms() -> None:
    atoms = rows(3, D)
    for others in (torch.zeros(4, D), torch.zeros(0, D), torch.full((2, D), math.nan)):
        found = closest(atoms, others)
        assert found.cosine.isnan().all()
        assert found.index.tolist() == [-1] * 3
        assert math.isnan(mmcs(atoms, others))
        assert math.isnan(mmcs(others, atoms))
        assert closest(others, atoms).index.tolist() == [-1] * others.shape[0]
        assert [len(part) for part in hungarian(others, atoms)[:3]] == [0, 0, 0]
        assert all(map(math.isnan, hungarian(atoms, others)[3:]))
    assert mmcs(atoms[:1], 3 * atoms[:1]) == pytest.approx(1)


def test_half_precision_is_computed_in_float32_and_gradients_are_not_kept() -> None:
    atoms = rows(4, D, 0, torch.float16).requires_grad_()
    assert mcs(atoms, atoms).dtype == torch.float32
    assert not mcs(atoms, atoms).requires_grad
    assert mcs(atoms, atoms.double()).dtype == torch.float64
    assert hungarian(atoms, atoms).rows.tolist() == [0, 1, 2, 3]


def test_mmcs_has_a_direction() -> None:
    small, large = spoilt(9, 0), torch.cat([spoilt(9, 0), spoilt(30, 2)])
    found, _ = slow_closest(large, small, False)
    assert mmcs(small, large) == pytest.approx(1)
    assert mmcs(large, small) == pytest.approx(np.nanmean(found))
    assert mmcs(large, small) < 0.95
    assert torch.equal(representedness(large[:1], small), mcs(large[:1], small))
    assert mmcs(small, -small, absolute=True) == pytest.approx(1)


@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 5)), ((4,), (3, 4)), ((2, 3, 4), (2, 3, 4))], ids=str
)
def test_other_widths_are_an_error(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    atoms, others = (torch.ones(shape) for shape in shapes)
    for compare in (closest, mcs, mmcs, representedness, hungarian):
        with pytest.raises(UserError, match="same width") as caught:
            compare(atoms, others)
        assert caught.value.found == f"{shapes[0]} and {shapes[1]}"


def test_blocks_cover_all_pairs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "ROWS", 4)
    monkeypatch.setattr(matching, "COLUMNS", 5)
    atoms, others = spoilt(13, 0), spoilt(17, 2)
    there = usable(atoms), usable(others)
    matrix = torch.full((9, 13), math.nan, dtype=torch.float64)
    for top, left, block in cosine_blocks(atoms, there[0], others, there[1]):
        part = matrix[top : top + block.shape[0], left : left + block.shape[1]]
        assert part.isnan().all()
        part.copy_(block)
    units = [
        torch.nn.functional.normalize(x[i]) for x, i in zip((atoms, others), there, strict=True)
    ]
    torch.testing.assert_close(matrix, units[0] @ units[1].T)


@pytest.mark.parametrize("bins", [1, 3, 7, 10, 50])
def test_by_frequency(bins: int) -> None:
    represented, frequency = rows(1, 33)[0].sigmoid(), rows(1, 33, 1)[0].exp()
    represented[3], frequency[7] = math.nan, math.nan
    pairs = zip(frequency.tolist(), represented.tolist(), strict=True)
    left = sorted(pair for pair in pairs if not any(map(math.isnan, pair)))
    found = by_frequency(represented, frequency, bins, threshold=0.6)
    assert len(found) == min(bins, 31)
    assert sum(one.features for one in found) == 31
    assert {one.features for one in found} <= {31 // len(found), 31 // len(found) + 1}
    for one in found:
        own, left = left[: one.features], left[one.features :]
        assert (one.lowest, one.highest) == (own[0][0], own[-1][0])
        assert one.mean == pytest.approx(sum(r for _, r in own) / len(own))
        assert one.share == pytest.approx(sum(r > 0.6 for _, r in own) / len(own))


def test_by_frequency_without_features_or_bins() -> None:
    nothing = torch.full((3,), math.nan)
    assert by_frequency(nothing, torch.ones(3)) == []
    with pytest.raises(UserError, match="one frequency"):
        by_frequency(nothing, torch.ones(4))
    with pytest.raises(UserError, match="a bin"):
        by_frequency(nothing, nothing, bins=0)


@pytest.mark.parametrize("absolute", [False, True])
def test_hungarian_recovers_a_permutation(absolute: bool) -> None:
    atoms = rows(40, 16, dtype=torch.float32)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    sign = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0 if absolute else 1.0)
    noise = 0.01 * rows(40, 16, 1, torch.float32)
    others = (3 * atoms + noise)[order] * sign[:, None]
    found = hungarian(atoms, others, absolute=absolute)
    assert found.rows.tolist() == list(range(40))
    assert torch.equal(found.columns, order.argsort())
    assert found.share == 1.0
    assert found.mean == pytest.approx(float(found.cosines.mean()))
    assert found.mean > 0.999


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_hungarian_is_the_best_of_all_assignments(absolute: bool, swap: bool) -> None:
    atoms, others = spoilt(8, 0), spoilt(10, 2)  # 4 and 6 of them are atoms
    pair = (others, atoms) if swap else (atoms, others)
    found = hungarian(*pair, absolute=absolute, threshold=0.5)
    first, second = (torch.nn.functional.normalize(x[usable(x)]).numpy() for x in (atoms, others))
    cosines = np.abs(first @ second.T) if absolute else first @ second.T
    best = max(
        itertools.permutations(range(6), 4),
        key=lambda chosen: sum(cosines[i, j] for i, j in enumerate(chosen)),
    )
    expected = {
        (int(usable(atoms)[i]), int(usable(others)[j])): cosines[i, j] for i, j in enumerate(best)
    }
    columns, given = found.columns.tolist(), found.rows.tolist()
    assert given == sorted(given)
    keys = zip(columns, given, strict=True) if swap else zip(given, columns, strict=True)
    assert dict(zip(keys, found.cosines.tolist(), strict=True)) == pytest.approx(expected)
    assert found.mean == pytest.approx(np.mean(list(expected.values())))
    assert found.share == np.mean([value > 0.5 for value in expected.values()])


def test_hungarian_counts_an_atom_once() -> None:
    atoms = torch.eye(3)[[0, 0, 0]]
    others = torch.eye(3)
    assert mmcs(atoms, others) == 1.0
    assert hungarian(atoms, others).mean == pytest.approx(1 / 3)


def test_hungarian_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_PAIRS", 20)
    assert len(hungarian(rows(4, D), rows(5, D)).rows) == 4
    with pytest.raises(UserError, match="too large") as caught:
        hungarian(rows(3, D), rows(7, D))
    assert "mcs" in str(caught.value)
    assert "20 pairs" in str(caught.value)
