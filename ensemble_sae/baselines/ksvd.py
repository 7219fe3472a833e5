"""K-SVD: codes by matching pursuit, then each atom in turn fitted to the rows that use it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ensemble_sae.baselines import pursuit
from ensemble_sae.baselines.components import enough, sample
from ensemble_sae.baselines.fixed import ByNonnegativeOmp, ByOmp, as_sae
from ensemble_sae.randomness import permutation
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures.parts import unit_rows

ALIKE = 0.99  # cosine from which two atoms are one


def ksvd_omp(
    rows: Tensor,
    n_dict: int,
    seed: int,
    *,
    k: int = 5,
    iterations: int = 30,
    max_rows: int = 65_536,
    on_progress: Callable[[int, float], None] | None = None,
) -> Sae:
    """K-SVD with orthogonal matching pursuit: signed codes with at most k nonzeros per row.

    An iteration codes all rows, then takes each atom d_j in turn, with the rows I that use it,
    their code g and their residual E without it: d = E^T g / ||E^T g||, g = E d: one power
    iteration of the rank-1 fit, instead of an SVD. Atoms that no row uses, and the second of two
    whose cosine is 0.99 in absolute value, become the rows that are reconstructed worst.

    Source: Aharon et al. 2006, "K-SVD: An Algorithm for Designing Overcomplete Dictionaries for
    Sparse Representation", section IV; power iteration: Rubinstein et al. 2008, "Efficient
    Implementation of the K-SVD Algorithm using Batch Orthogonal Matching Pursuit", the approximate
    K-SVD.

    Args:
        rows: `[N, d]`, not centred; learned on their device.
        k: nonzeros per row, at most min(n_dict, d).
        max_rows: in the sample that is learned from; its code `[max_rows, n_dict]` is kept.
        on_progress: called with the iterations made and the share of sum x^2 not reconstructed.

    Raises:
        UserError: fewer rows than atoms; k out of its range.
    """
    learned = _learn(sample(rows, max_rows, seed), n_dict, seed, k, iterations, False, on_progress)
    options = {"k": k, "iterations": iterations, "max_rows": max_rows}
    buffers = {"k": torch.tensor(k, device=rows.device)}
    return as_sae("ksvd_omp", ByOmp, {"decoder": learned}, buffers, seed=seed, options=options)


def ksvd_nonnegative(
    rows: Tensor,
    n_dict: int,
    seed: int,
    *,
    k: int = 5,
    iterations: int = 30,
    max_rows: int = 65_536,
    on_progress: Callable[[int, float], None] | None = None,
) -> Sae:
    """K-SVD with nonnegative orthogonal matching pursuit; otherwise as `ksvd_omp`.

    In the fit of an atom, g = relu(E d); two atoms are one where their cosine is 0.99.

    Source: as of `ksvd_omp`; nonnegative codes: Aharon et al. 2005, "K-SVD and its Non-negative
    Variant for Dictionary Design", where atoms are nonnegative too; here they are free.
    """
    learned = _learn(sample(rows, max_rows, seed), n_dict, seed, k, iterations, True, on_progress)
    options = {"k": k, "iterations": iterations, "max_rows": max_rows}
    buffers = {"k": torch.tensor(k, device=rows.device)}
    params = {"decoder": learned}
    name = "ksvd_nonnegative"
    return as_sae(name, ByNonnegativeOmp, params, buffers, seed=seed, options=options)


def _learn(
    rows: Tensor,
    n_dict: int,
    seed: int,
    k: int,
    iterations: int,
    nonnegative: bool,
    on_progress: Callable[[int, float], None] | None,
) -> Tensor:
    """The dictionary, unit rows `[n, d]`; it begins with rows drawn at random."""
    rows = rows[(rows != 0).any(1)]  # a row of zeros teaches nothing, and is no direction
    enough(rows, n_dict)
    start = permutation(len(rows), seed, "k-svd start")[:n_dict].to(rows.device)
    atoms = unit_rows(rows[start])
    energy = rows.square().sum()
    for iteration in range(iterations):
        code = pursuit.omp(rows, atoms, k, nonnegative)
        residual = rows - code @ atoms
        _fit_atoms(atoms, code, residual, nonnegative)
        if iteration + 1 < iterations:  # the last atoms stay as they were fitted
            _renew(atoms, code, rows, residual, nonnegative)
        if on_progress is not None:
            on_progress(iteration + 1, float(residual.square().sum() / energy))
    return atoms


def _fit_atoms(atoms: Tensor, code: Tensor, residual: Tensor, nonnegative: bool) -> None:
    """Fit each atom and its part of the code, in place; the residual keeps up with them."""
    which, users = code.mT.nonzero(as_tuple=True)  # in the order of the atoms
    counts = torch.bincount(which, minlength=len(atoms)).tolist()
    for j, used_by in enumerate(users.split(counts)):
        if not len(used_by):
            continue
        weights = code[used_by, j]
        without = residual[used_by] + weights[:, None] * atoms[j]
        atom = weights @ without
        length = torch.linalg.vector_norm(atom)
        atom = torch.where(length > 0, atom / length, atoms[j])
        weights = without @ atom
        weights = torch.relu(weights) if nonnegative else weights
        atoms[j], code[used_by, j] = atom, weights
        residual[used_by] = without - weights[:, None] * atom


def _renew(atoms: Tensor, code: Tensor, rows: Tensor, residual: Tensor, nonnegative: bool) -> None:
    """Atoms without use, and those that another is like, become rows, in place."""
    cosines = (atoms @ atoms.mT).tril(diagonal=-1)
    alike = (cosines if nonnegative else cosines.abs()).amax(1) > ALIKE
    spent = (alike | ~(code != 0).any(0)).nonzero().flatten()
    worst = residual.square().sum(1).topk(len(spent)).indices
    atoms[spent] = unit_rows(rows[worst])
