"""Codes of rows in a dictionary that is given: greedy pursuits and the l1 minimum, in batches.

Throughout, rows are `[B, d]`, the dictionary is D with unit rows `[n, d]`, and a code is `[B, n]`,
on the rows' device and in their dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.signatures.ista import largest_eigenvalue, momenta

BLOCK = 2**25  # numbers in the largest temporary: 128 MiB of float32
ROUNDING = 100  # times the machine epsilon, of a row's norm: what is left of it below that is noise


def omp(rows: Tensor, dictionary: Tensor, k: int, nonnegative: bool = False) -> Tensor:
    """Orthogonal matching pursuit: at most k atoms per row, one after the other.

    Each step takes the atom with the largest |r . d_i| of the residual r, or with the largest
    r . d_i > 0 if nonnegative, and then fits all atoms taken so far: by least squares, or by
    nonnegative least squares, which may set earlier ones to zero. A row stops when what is left of
    it is rounding, or when no atom lowers it.

    Source: Pati et al. 1993, "Orthogonal Matching Pursuit: Recursive Function Approximation with
    Applications to Wavelet Decomposition", the algorithm OMP; the nonnegative form is Bruckstein
    et al. 2008, "On the Uniqueness of Nonnegative Sparse Solutions to Underdetermined Systems of
    Equations".

    Raises:
        UserError: k outside of 1..min(n, d); rows and atoms of different width.
    """
    _check(rows, dictionary, k)
    pursue = _nonnegative_omp if nonnegative else _omp
    block = max(1, BLOCK // (k * dictionary.shape[1] + dictionary.shape[0]))
    return torch.cat([pursue(part, dictionary.to(part), k) for part in rows.split(block)])


def fista(
    rows: Tensor, dictionary: Tensor, l1: float, iterations: int = 100, nonnegative: bool = True
) -> Tensor:
    """The minimum over c of 1/2 ||c D - x||^2 + l1 ||c||_1, by FISTA from c = 0.

    The squared error is summed over d, where the signature `fista` takes its mean: the same code
    needs an l1 that is d times as large here. l1 = 0 gives (nonnegative) least squares.

    Source: Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm", section 4
    (constant step size).

    Raises:
        UserError: rows and atoms of different width.
    """
    _check(rows, dictionary)
    atoms = dictionary.to(rows)
    step = 1 / largest_eigenvalue(atoms)
    code = ahead = rows.new_zeros(rows.shape[0], atoms.shape[0])
    for momentum in momenta(iterations):
        before = code
        moved = ahead - step * ((ahead @ atoms - rows) @ atoms.mT)
        code = _shrink(moved, step * l1, nonnegative)
        ahead = code + momentum * (code - before)
    return code


def top_k(rows: Tensor, dictionary: Tensor, k: int) -> Tensor:
    """c = relu(x D^T) at the k largest of x D^T, and 0 elsewhere.

    Raises:
        UserError: k outside of 1..min(n, d); rows and atoms of different width.
    """
    _check(rows, dictionary, k)
    best, chosen = (rows @ dictionary.to(rows).mT).topk(k, dim=1)
    code = rows.new_zeros(rows.shape[0], dictionary.shape[0])
    return code.scatter_(1, chosen, torch.relu(best))


def _check(rows: Tensor, dictionary: Tensor, k: int | None = None) -> None:
    if rows.dim() != 2 or dictionary.dim() != 2 or rows.shape[1] != dictionary.shape[1]:
        raise UserError(
            "Rows and dictionary do not fit together.",
            found=f"rows {list(rows.shape)}, dictionary {list(dictionary.shape)}",
            allowed="rows [B, d], dictionary [n, d]",
        )
    if k is not None and not 1 <= k <= min(dictionary.shape):
        raise UserError(
            "So many atoms cannot be chosen for a row.",
            where="k",
            found=str(k),
            allowed=f"1..{min(dictionary.shape)}: neither more than atoms nor than dimensions",
        )


def _noise(rows: Tensor) -> Tensor:
    """What is no more than rounding in a residual or a correlation of each row, `[B]`."""
    return ROUNDING * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows, dim=1)


def _shrink(values: Tensor, by: Tensor, nonnegative: bool) -> Tensor:
    if nonnegative:
        return torch.relu(values - by)
    return values.sign() * torch.relu(values.abs() - by)


def _omp(rows: Tensor, atoms: Tensor, k: int) -> Tensor:
    """By A = R^T Q, whose rows grow by one a step: A chosen atoms, Q `[B, k, d]` orthonormal.

    A row that has stopped gets zeros in Q, and ones on the diagonal of R, so that the triangular
    system at the end gives it zeros there.
    """
    count = rows.shape[0]
    basis = rows.new_zeros(count, k, rows.shape[1])
    triangle = torch.eye(k, dtype=rows.dtype, device=rows.device).repeat(count, 1, 1)
    chosen = torch.zeros(count, k, dtype=torch.int64, device=rows.device)
    parts = rows.new_zeros(count, k)  # of the row along Q
    residual, noise = rows, _noise(rows)
    for t in range(k):
        # What is left of a chosen atom's correlation is rounding, which must not choose it again.
        correlation = (residual @ atoms.mT).scatter_(1, chosen[:, :t], 0)
        pick = correlation.abs().argmax(1)
        new, along = _orthogonal(atoms[pick], basis[:, :t])
        length = torch.linalg.vector_norm(new, dim=1)
        left = torch.linalg.vector_norm(residual, dim=1)
        goes_on = (length > ROUNDING * torch.finfo(rows.dtype).eps) & (left > noise)
        direction = torch.where(goes_on[:, None], new / length[:, None], 0)
        basis[:, t], chosen[:, t] = direction, pick
        triangle[:, :t, t] = along * goes_on[:, None]
        triangle[:, t, t] = torch.where(goes_on, length, 1)
        parts[:, t] = (residual * direction).sum(1)
        residual = residual - parts[:, t, None] * direction
    weights = torch.linalg.solve_triangular(triangle, parts[..., None], upper=True)[..., 0]
    return rows.new_zeros(count, atoms.shape[0]).scatter_add_(1, chosen, weights)


def _orthogonal(new: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of `new` `[B, d]` outside of the basis `[B, t, d]`, and its parts in it.

    Taken out twice: once leaves errors as large as the atoms are alike (Giraud et al. 2005).
    """
    along = new.new_zeros(basis.shape[:2])
    for _ in range(2):
        more = (basis @ new[..., None])[..., 0]
        new = new - (more[:, None] @ basis)[:, 0]
        along = along + more
    return new, along


def _nonnegative_omp(rows: Tensor, atoms: Tensor, k: int) -> Tensor:
    """With the Gram matrix of the chosen atoms `[B, k, k]`: the fits need no more than that."""
    count = rows.shape[0]
    support = rows.new_zeros(count, k, rows.shape[1])
    chosen = torch.zeros(count, k, dtype=torch.int64, device=rows.device)
    gram = torch.eye(k, dtype=rows.dtype, device=rows.device).repeat(count, 1, 1)
    weights, products = rows.new_zeros(count, k), rows.new_zeros(count, k)
    residual, noise = rows, _noise(rows)
    for t in range(k):
        correlation = (residual @ atoms.mT).scatter_(1, chosen[:, :t], -torch.inf)
        best, pick = correlation.max(1)
        new = torch.where((best > noise)[:, None], atoms[pick], 0)
        support[:, t], chosen[:, t] = new, pick
        overlaps = (support[:, :t] @ new[..., None])[..., 0]
        gram[:, t, :t] = gram[:, :t, t] = overlaps
        products[:, t] = (new * rows).sum(1)
        now = slice(0, t + 1)
        weights[:, now] = _nnls(gram[:, now, now], products[:, now], weights[:, now], noise)
        residual = rows - (weights[:, None, now] @ support[:, now])[:, 0]
    return rows.new_zeros(count, atoms.shape[0]).scatter_add_(1, chosen, weights)


def _nnls(gram: Tensor, products: Tensor, weights: Tensor, noise: Tensor) -> Tensor:
    """argmin over w >= 0 of w G w / 2 - p w, from a w that is optimal where it is not zero.

    Source: Lawson & Hanson 1974, "Solving Least Squares Problems", algorithm NNLS (23.10), for
    all rows at once: the ones that are done wait.

    Args:
        gram: G `[B, t, t]`; products: p `[B, t]`; weights: w `[B, t]`.
        noise: gradients up to this count as zero, `[B]`.
    """
    passive = weights > 0
    for _ in range(3 * weights.shape[1]):  # a bound on rounding's cycles; t or fewer are usual
        gradient = products - (gram @ weights[..., None])[..., 0]
        gradient = gradient.masked_fill(passive, -torch.inf)
        best, pick = gradient.max(1)
        grows = best > noise
        if not bool(grows.any()):
            break
        passive = passive.scatter(1, pick[:, None], grows[:, None] | passive.all(1, keepdim=True))
        weights, passive = _inner(gram, products, weights, passive)
    return weights


def _inner(
    gram: Tensor, products: Tensor, weights: Tensor, passive: Tensor
) -> tuple[Tensor, Tensor]:
    """The least squares of the passive weights, without those that it would make negative."""
    while True:
        solved = _least_squares(gram, products, passive)
        wrong = passive & (solved <= 0)
        if not bool(wrong.any()):
            return solved, passive
        # As far towards the solution as all stay nonnegative: the first to reach zero leaves.
        distance = (weights - solved).clamp_min(torch.finfo(weights.dtype).tiny)
        ratio = torch.where(wrong, weights / distance, torch.inf)
        first = ratio.amin(1, keepdim=True)
        moved = weights + first.clamp(max=1) * (solved - weights)
        passive = passive & ~(wrong & (ratio <= first))
        weights = torch.where(passive, moved, 0)


def _least_squares(gram: Tensor, products: Tensor, passive: Tensor) -> Tensor:
    """Solves G w = p over the passive weights; the others are zero."""
    both = passive[:, :, None] & passive[:, None, :]
    one = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    # The ridge, far below what rounding does to G, keeps equal atoms from being singular.
    ridge = torch.finfo(gram.dtype).eps * gram.shape[1]
    system = torch.where(both, gram, one) + ridge * one
    wanted = torch.where(passive, products, 0)
    solved = torch.linalg.solve_ex(system, wanted[..., None]).result[..., 0]
    return torch.where(passive, solved, 0)
