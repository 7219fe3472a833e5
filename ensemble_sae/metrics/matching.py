"""How much of one dictionary is found in another: closest atoms and one-to-one assignments.

Rows are normalised here, so any row that is finite and not zero is an atom; the others are none. A
block of cosines is held at a time: memory beyond the inputs does not grow with their product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ensemble_sae.errors import UserError

ROWS, COLUMNS = 1024, 4096  # of a block of cosines: 16 MiB of float32
FOUND = 0.9  # a cosine above this (26 degrees) counts as the same direction
MAX_PAIRS = 2**26  # of an assignment: 512 MiB of float64, up to three times that on the way


class Closest(NamedTuple):
    """For each atom the best of the others: its cosine and its index, each `[n]`."""

    cosine: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple's method, which nobody needs here


class FrequencyBin(NamedTuple):
    """Features that are about as frequent, and how well they are represented.

    Attributes:
        lowest: frequency of the rarest of them; highest: of the most frequent.
        features: how many there are.
        mean: of how well they are represented.
        share: of them that are represented better than the threshold.
    """

    lowest: float
    highest: float
    features: int
    mean: float
    share: float


class Assignment(NamedTuple):
    """Pairs of atoms, each atom in one pair at most.

    Attributes:
        rows: index of the first of each pair, ascending, int64 `[p]`; columns: of the second.
        cosines: of the pairs `[p]`, float64.
        mean: of the cosines, NaN if there is no pair.
        share: of the pairs with a cosine above the threshold, NaN if there is none.
    """

    rows: Tensor
    columns: Tensor
    cosines: Tensor
    mean: float
    share: float


@torch.no_grad()
def closest(atoms: Tensor, others: Tensor, *, absolute: bool = False) -> Closest:
    """max over j of A^_i . B^_j and the j that reaches it, for every row i.

    Rows that are zero or not finite are no atoms: in `others` they are never chosen, in `atoms`
    they get NaN and the index -1, as everything does where `others` has no atom. Of equals the one
    with the lowest index is chosen; equal after rounding, that is, which in float32 can make two
    copies of an atom differ. Computed in float32, or float64 if either input is float64.

    Args:
        atoms: `[n, d]`, of any norms; others: `[m, d]`, on the same device.
        absolute: compare |cos|, for dictionaries in which the sign of an atom means nothing.

    Raises:
        UserError: the widths differ.
    """
    _check_widths(atoms, others)
    rows, columns = usable(atoms), usable(others)
    best = atoms.new_full((rows.numel(),), -math.inf, dtype=_precision(atoms, others))
    index = torch.full_like(rows, -1)
    for top, left, cosines in cosine_blocks(atoms, rows, others, columns, absolute=absolute):
        part = slice(top, top + cosines.shape[0])
        highest = cosines.amax(1)  # many times as fast as with indices, which few rows need
        better = (highest > best[part]).nonzero()[:, 0]
        best[part] = torch.maximum(best[part], highest)
        index[top + better] = columns[left + cosines[better].argmax(1)]
    found = best.clamp(-1, 1) if columns.numel() else torch.full_like(best, math.nan)
    everywhere = found.new_full((atoms.shape[0],), math.nan)
    everywhere[rows] = found
    chosen = torch.full((atoms.shape[0],), -1, device=atoms.device)
    chosen[rows] = index
    return Closest(everywhere, chosen)


def mcs(atoms: Tensor, others: Tensor, *, absolute: bool = False) -> Tensor:
    """Maximum cosine similarity: how well each atom is found among the others, `[n]`.

    Sharkey et al. 2022, "Taking features out of superposition with sparse autoencoders". It is
    `closest(...).cosine`: arguments, NaN and errors are told there.
    """
    return closest(atoms, others, absolute=absolute).cosine


def mmcs(atoms: Tensor, others: Tensor, *, absolute: bool = False) -> float:
    """1/n sum_i max_j A^_i . B^_j: the mean of `mcs`, from `atoms` to `others`.

    Sharkey et al. 2022 (see `mcs`). The direction matters: a small dictionary may be found whole
    in a large one, most of which is not found in the small one. Swap the two for the other
    direction. Cunningham et al. 2023, "Sparse Autoencoders Find Highly Interpretable Features in
    Language Models", compare dictionaries of several sizes so.

    Rows of `atoms` that are zero or not finite are left out. NaN if there is no other, or no atom
    in `others`. Arguments and errors as for `closest`.
    """
    found = mcs(atoms, others, absolute=absolute)
    return float(found[~found.isnan()].double().mean())


def representedness(truth: Tensor, dictionary: Tensor, *, absolute: bool = False) -> Tensor:
    """How well each true feature is represented in a dictionary: `mcs` seen from the truth, `[n]`.

    Args:
        truth: the features that made the rows, `[n, d]`; dictionary: what was learnt, `[m, d]`.
    """
    return mcs(truth, dictionary, absolute=absolute)


def by_frequency(
    represented: Tensor, frequency: Tensor, bins: int = 10, *, threshold: float = FOUND
) -> list[FrequencyBin]:
    """How well features are represented by how frequent they are, from the rarest on.

    Each bin has as many features as the next, or one more. Features that are NaN in either are
    left out; with fewer features than bins each is a bin of its own.

    Args:
        represented: `[n]`, as `representedness` gives it; frequency: `[n]`, in any unit.

    Raises:
        UserError: the lengths differ, or `bins` is not positive.
    """
    if represented.shape != frequency.shape or represented.dim() != 1:
        raise UserError(
            "Each feature needs one frequency.",
            where="by_frequency(represented, frequency)",
            found=f"shapes {tuple(represented.shape)} and {tuple(frequency.shape)}",
            allowed="two tensors [n]",
        )
    if bins < 1:
        raise UserError(
            "There must be a bin.", where="by_frequency(bins)", found=str(bins), allowed=">= 1"
        )
    represented, frequency = represented.double(), frequency.double().to(represented.device)
    there = ~(represented.isnan() | frequency.isnan())
    represented, frequency = represented[there], frequency[there]
    order = frequency.argsort(stable=True)
    parts = order.tensor_split(min(bins, order.numel())) if order.numel() else ()
    return [
        FrequencyBin(
            lowest=float(frequency[part[0]]),
            highest=float(frequency[part[-1]]),
            features=part.numel(),
            mean=float(represented[part].mean()),
            share=float((represented[part] > threshold).double().mean()),
        )
        for part in parts
    ]


@torch.no_grad()
def hungarian(
    atoms: Tensor, others: Tensor, *, absolute: bool = False, threshold: float = FOUND
) -> Assignment:
    """The one-to-one assignment of min(n, m) pairs with the largest sum of cosines.

    Unlike `mmcs` it counts an atom of `others` once, however many atoms are close to it. Kuhn
    1955, "The Hungarian method for the assignment problem", as SciPy solves it. Rows that are zero
    or not finite are left out; the indices are those of the rows as given.

    Args:
        atoms: `[n, d]`, of any norms; others: `[m, d]`, on the same device.
        absolute: compare |cos|.
        threshold: above which a pair counts for `share`.

    Raises:
        UserError: the widths differ, or there are more than 2**26 pairs to choose from.
    """
    from scipy.optimize import linear_sum_assignment

    _check_widths(atoms, others)
    rows, columns = usable(atoms), usable(others)
    if rows.numel() * columns.numel() > MAX_PAIRS:
        raise UserError(
            "These dictionaries are too large for a one-to-one assignment.",
            where="hungarian(atoms, others)",
            found=f"{rows.numel():,} x {columns.numel():,} atoms",
            allowed=f"{MAX_PAIRS:,} pairs, such as {math.isqrt(MAX_PAIRS):,} squared",
            next_step="compare them with mcs or mmcs, or a sample of the atoms",
        )
    matrix = torch.empty(rows.numel(), columns.numel(), dtype=torch.float64)
    for top, left, cosines in cosine_blocks(atoms, rows, others, columns, absolute=absolute):
        height, width = cosines.shape
        matrix[top : top + height, left : left + width] = cosines
    first, second = map(torch.from_numpy, linear_sum_assignment(matrix.numpy(), maximize=True))
    chosen = matrix[first, second].clamp(-1, 1)
    return Assignment(
        rows=rows[first.to(rows.device)],
        columns=columns[second.to(columns.device)],
        cosines=chosen.to(atoms.device),
        mean=float(chosen.mean()),
        share=float((chosen > threshold).double().mean()),
    )


def usable(atoms: Tensor) -> Tensor:
    """Indices of the rows that are atoms, finite and not zero: ascending, int64 `[k]`."""
    largest = torch.linalg.vector_norm(atoms, math.inf, dim=1)  # which keeps NaN
    return ((largest > 0) & largest.isfinite()).nonzero()[:, 0]


def cosine_blocks(
    atoms: Tensor, rows: Tensor, others: Tensor, columns: Tensor, *, absolute: bool = False
) -> Iterator[tuple[int, int, Tensor]]:
    """All cosines of `atoms[rows]` with `others[columns]`, a block at a time.

    Yields (top, left, block): block `[r, c]` holds those of `rows[top : top + r]` with
    `columns[left : left + c]`, and is overwritten by the next. All rows come for the first columns,
    then for the next, each in ascending order. Needs `torch.no_grad`.
    """
    precision = _precision(atoms, others)
    size = min(ROWS, rows.numel()) * min(COLUMNS, columns.numel())
    buffer = atoms.new_empty(size, dtype=precision)
    for left in range(0, columns.numel(), COLUMNS):
        across = _unit(others[columns[left : left + COLUMNS]].to(precision))
        for top in range(0, rows.numel(), ROWS):
            down = _unit(atoms[rows[top : top + ROWS]].to(precision))
            height, width = down.shape[0], across.shape[0]
            block = torch.mm(down, across.T, out=buffer[: height * width].view(height, width))
            yield top, left, block.abs_() if absolute else block


def _unit(rows: Tensor) -> Tensor:
    """Normalise in place; twice, so that the square of no row is too large or too small."""
    rows /= torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True)
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows


def _precision(atoms: Tensor, others: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(atoms.dtype, others.dtype), torch.float32)


def _check_widths(atoms: Tensor, others: Tensor) -> None:
    if not (atoms.dim() == others.dim() == 2 and atoms.shape[1] == others.shape[1]):
        raise UserError(
            "Only dictionaries of the same width can be compared.",
            where="shapes of atoms and others",
            found=f"{tuple(atoms.shape)} and {tuple(others.shape)}",
            allowed="[n, d] and [m, d], one atom per row",
        )
