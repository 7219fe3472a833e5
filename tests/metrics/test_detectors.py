"""Detectors: what cheats is named, what does not is left alone, and loops give the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from making import rows
from torch import Tensor

from ensemble_sae.metrics import detectors
from ensemble_sae.metrics.detectors import FLAGS, Findings, detect

D, R = 48, 20_000


def unit(directions: Tensor) -> Tensor:
    return torch.nn.functional.normalize(directions, dim=1)


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(rows(d, d, seed))[0]


def found(dictionary: Tensor | None, shares: Tensor | float, **given: float) -> Findings:
    """The findings on a dictionary whose features fire on these shares of the rows."""
    n = D if dictionary is None else dictionary.shape[0]
    firing = (torch.as_tensor(shares).expand(n) * R).round().long()
    measured = {"l0": float(firing.sum()) / R, "fvu": 0.1, **given}
    return detect(dictionary, firing, R, **measured)


def slow_min_cosine(dictionary: np.ndarray) -> float:
    atoms = [atom for atom in dictionary if atom.any()]
    pairs = [a @ b for i, a in enumerate(atoms) for j, b in enumerate(atoms) if i != j]
    return min(pairs, default=math.nan)


def slow_overlap(dictionary: np.ndarray, firing: np.ndarray) -> float:
    n, d = dictionary.shape
    total = weight = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                p = float(firing[i]) * float(firing[j])
                total += p * (dictionary[i] @ dictionary[j]) ** 2
                weight += p
    return d * total / weight


def test_the_identity_is_found_in_any_order_and_sign() -> None:
    order = torch.randperm(D, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(D)[order] * (rows(D, 1).sign().float())
    for noise in (0.0, 0.02):
        findings = found(unit(identity + noise * rows(D, D).float()), 0.05)
        assert findings.axis_share == 1.0
        assert findings.flags == ("near-identity",)


@pytest.mark.parametrize("noise", [0.0, 0.3])  # the norm of what is added to each atom
@pytest.mark.parametrize("share", [0.4, 0.5, 1.0])
def test_a_rotated_identity_is_found(noise: float, share: float) -> None:
    turned = unit(rotation(D) + noise * unit(rows(D, D, seed=1)))
    findings = found(turned, share)
    assert findings.axis_share == 0.0
    assert findings.flags == ("near-identity",)
    assert found(turned, 0.1).flags == ()  # orthogonal features, but sparse


def test_a_rotation_is_found_among_dead_and_rare_atoms() -> None:
    wide = torch.cat([rotation(D), unit(rows(3 * D, D, seed=2))])
    shares = torch.tensor([0.9] * D + [0.0] * D + [0.01] * 2 * D)
    assert found(wide, shares).flags == ("near-identity",)


@pytest.mark.parametrize("ratio", [0.5, 1, 4])
@pytest.mark.parametrize("d", [16, D, 200])
def test_random_directions_are_not_flagged_however_dense(ratio: float, d: int) -> None:
    random = unit(rows(int(ratio * d), d, seed=3))
    for share in (0.02 if d * ratio * 0.02 > 0.5 else 0.2, 0.8):
        findings = found(random, share)
        assert findings.flags == ()
        assert findings.axis_share == 0.0
    firing = torch.full((random.shape[0],), 7)
    assert detectors.overlap(random, firing) == pytest.approx(1, abs=0.4)


def test_opposite_pairs_are_found() -> None:
    directions = unit(rows(2 * D, D))
    noisy = unit(-directions[5] + 0.1 * unit(rows(1, D, seed=4))[0, None])
    findings = found(torch.cat([directions, noisy]), 0.02)
    assert findings.min_cosine == pytest.approx(-1 / math.hypot(1, 0.1), abs=0.02)
    assert findings.flags == ("opposite pairs",)
    both = rotation(D)
    assert found(torch.cat([both, -both]), 0.5).flags == ("opposite pairs",)


def test_collapse_and_blow_up() -> None:
    healthy = unit(rows(2 * D, D))
    assert found(healthy, 0.1, l0=0.49, fvu=1.0).flags == ("collapsed",)
    assert found(healthy, 0.1, l0=0.0, fvu=30.0).flags == ("collapsed",)  # rows far from zero
    assert found(healthy, 0.1, l0=0.51, fvu=1.0).flags == ()
    for l0, fvu in ((9.6, 1.01), (9.6, math.nan), (9.6, math.inf), (math.nan, 0.1), (math.inf, 0)):
        assert found(healthy, 0.1, l0=l0, fvu=fvu).flags == ("blown up",)
    assert found(healthy, 0.1, l0=0.0, fvu=math.nan).flags == ("collapsed", "blown up")


def test_a_dictionary_that_is_not_finite_is_no_reason_to_fail() -> None:
    broken = unit(rows(D, D))
    broken[3, 2] = math.nan
    findings = found(broken, 0.5, l0=math.nan, fvu=math.nan)
    assert math.isnan(findings.min_cosine)
    assert findings.flags == ("blown up",)


def test_a_signature_without_a_dictionary() -> None:
    findings = found(None, 0.5)
    assert math.isnan(findings.min_cosine)
    assert math.isnan(findings.axis_share)
    assert findings.flags == ()
    assert found(None, 0.0).flags == ("collapsed",)


@pytest.mark.parametrize(
    ("total", "counts", "share"),
    [
        (1_000, [0, 1, 1, 2, 900], 2 / 5),  # a single row is the least that can be seen
        (149_999, [0, 1, 2, 3, 4], 1 / 5),
        (10**6, [0, 1, 10, 11, 500_000], 2 / 5),
        (10**7, [0, 99, 100, 101, 10**7], 2 / 5),
    ],
)
def test_ultra_low_density(total: int, counts: list[int], share: float) -> None:
    assert detectors.ultra_low_density(torch.tensor(counts), total) == share


def test_ultra_low_density_is_flagged_on_enough_rows_only() -> None:
    many = torch.tensor([1] * 27 + [5000] * 73)
    few = torch.tensor([1] * 25 + [5000] * 75)
    dictionary = unit(rows(100, D))
    for firing, total, flags in (
        (many, 10_000, ("ultra-low density",)),
        (many, 9_999, ()),
        (few, 10_000, ()),
    ):
        assert detect(dictionary, firing, total, 5.0, 0.1).flags == flags


@pytest.mark.parametrize("n", [2, 7, 8, 9, 40])
def test_blocks_equal_the_whole(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = unit(rows(n, 5, seed=n))
    dictionary[::7] *= 0 if n > 7 else 1  # dead rows
    expected = slow_min_cosine(dictionary.numpy())
    for block in (1, 3, 8, 512):
        monkeypatch.setattr(detectors, "BLOCK", block)
        assert detectors.min_cosine(dictionary) == pytest.approx(expected, rel=1e-12)


def test_dead_rows_are_no_atoms() -> None:
    axes = torch.eye(6)[[0, 0, 1]]
    axes[1] = 0
    assert detectors.min_cosine(axes) == 0.0
    assert detectors.axis_share(axes) == 1.0
    assert math.isnan(detectors.min_cosine(axes[:2]))
    assert math.isnan(detectors.axis_share(torch.zeros(3, 6)))
    twins = unit(torch.ones(2, 6))
    assert detectors.min_cosine(twins) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overlap_equals_the_loop(dtype: torch.dtype) -> None:
    dictionary = unit(rows(30, 8, dtype=dtype))
    firing = (rows(30, 1)[:, 0].abs() * 1000).long()
    firing[4:9] = 0
    found = detectors.overlap(dictionary, firing)
    expected = slow_overlap(dictionary.double().numpy(), firing.numpy())
    assert found == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)
    assert math.isnan(detectors.overlap(dictionary, (torch.arange(30) == 3).long()))


def test_all_flags_at_once_keep_their_order() -> None:
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    firing = torch.ones(2 * D, dtype=torch.int64)
    findings = detect(both, firing, R, 0.1, math.nan)
    assert findings.flags == FLAGS
