"""Pursuits against slow loops, and l1 minima against the conditions of a minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import rows
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

from ensemble_sae.baselines import pursuit
from ensemble_sae.errors import UserError
from ensemble_sae.signatures.parts import unit_rows


def problem(count: int = 40, n: int = 20, d: int = 10) -> tuple[Tensor, Tensor]:
    return rows(count, d), unit_rows(rows(n, d, seed=1))


def nonnegative_reference(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """One row, one atom after the other, each fit by scipy."""
    support: list[int] = []
    code, residual = np.zeros(len(atoms)), x
    for _ in range(k):
        correlation = atoms @ residual
        correlation[support] = -np.inf
        if correlation.max() <= 1e-12:
            break
        support.append(int(correlation.argmax()))
        weights, _ = nnls(atoms[support].T, x)
        residual = x - weights @ atoms[support]
        code[:] = 0
        code[support] = weights
    return code


@pytest.mark.parametrize("k", [1, 3, 10])
def test_omp_is_that_of_sklearn(k: int) -> None:
    x, atoms = problem()
    expected = orthogonal_mp(atoms.T.numpy(), x.T.numpy(), n_nonzero_coefs=k).T
    torch.testing.assert_close(pursuit.omp(x, atoms, k), torch.from_numpy(expected))


@pytest.mark.parametrize("k", [1, 2, 5, 10])
@pytest.mark.parametrize("offset", [0.0, 1.0])  # with it, atoms are alike and weights go negative
def test_nonnegative_omp_is_that_of_a_loop(k: int, offset: float) -> None:
    x, atoms = problem()
    x, atoms = x + offset, unit_rows(atoms + offset * atoms.abs().mean())
    expected = np.stack([nonnegative_reference(row, atoms.numpy(), k) for row in x.numpy()])
    found = pursuit.omp(x, atoms, k, nonnegative=True)
    assert found.min() >= 0
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-8, atol=1e-10)


def test_nonnegative_fits_drop_atoms_chosen_before() -> None:
    """The first atom lies between the two that make the row up; with both, it is not needed."""
    atoms = unit_rows(torch.tensor([[1.0, 1.0, 0.3], [1.0, 0.1, 0.0], [0.1, 1.0, 0.0]]))
    row = (atoms[1] + atoms[2] - torch.tensor([0.0, 0.0, 0.2]))[None]
    assert pursuit.omp(row, atoms, 1, nonnegative=True)[0].nonzero().flatten().tolist() == [0]
    code = pursuit.omp(row, atoms, 3, nonnegative=True)
    torch.testing.assert_close(code, torch.tensor([[0.0, 1.0, 1.0]]))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_omp_stops_when_nothing_is_left(nonnegative: bool) -> None:
    atoms = unit_rows(rows(12, 6, seed=1, dtype=torch.float32))
    x = torch.cat([3 * atoms[2:3], torch.zeros(1, 6)])
    code = pursuit.omp(x, torch.cat([atoms, atoms]), 5, nonnegative)  # each atom is there twice
    assert (code != 0).sum(1).tolist() == [1, 0]
    torch.testing.assert_close(code[0, 2], torch.tensor(3.0))


def test_nonnegative_omp_leaves_what_no_atom_points_to() -> None:
    x = -torch.eye(3)[:1]
    assert not pursuit.omp(x, torch.eye(3), 2, nonnegative=True).any()
    assert pursuit.omp(x, torch.eye(3), 2).tolist() == [[-1.0, 0.0, 0.0]]


def test_omp_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, atoms = problem()
    whole = [pursuit.omp(x, atoms, 4, sign) for sign in (False, True)]
    monkeypatch.setattr(pursuit, "BLOCK", 7 * (4 * 10 + 20))
    for code, sign in zip(whole, (False, True), strict=True):
        torch.testing.assert_close(pursuit.omp(x, atoms, 4, sign), code)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("l1", [0.0, 0.1, 1.0])
def test_fista_finds_the_minimum(l1: float, nonnegative: bool) -> None:
    x, atoms = problem(n=8, d=10)  # not overcomplete: the minimum is one point
    code = pursuit.fista(x, atoms, l1, iterations=3000, nonnegative=nonnegative)
    downhill = (x - code @ atoms) @ atoms.T
    active, sign = code != 0, code.sign()
    torch.testing.assert_close(downhill[active], l1 * sign[active], rtol=0, atol=1e-6)
    idle = downhill[~active] if nonnegative else downhill[~active].abs()
    assert (idle <= l1 + 1e-6).all()
    assert bool((code >= 0).all()) == nonnegative


def test_top_k_keeps_the_largest_that_are_positive() -> None:
    x = torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, 1.0]])
    assert pursuit.top_k(x, torch.eye(3), 2).tolist() == [[3.0, 0.0, 2.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("k", [0, 11])
def test_k_has_limits(k: int) -> None:
    x, atoms = problem()
    for pursue in (pursuit.omp, pursuit.top_k):
        with pytest.raises(UserError, match=r"1\.\.10"):
            pursue(x, atoms, k)


def test_widths_must_agree() -> None:
    x, atoms = problem()
    with pytest.raises(UserError, match=r"rows \[40, 9\], dictionary \[20, 10\]"):
        pursuit.fista(x[:, :9], atoms, 0.1)
