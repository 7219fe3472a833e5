"""Warning signs in a trained member: dictionaries that cheat, members that say nothing or blow up.

A low FVU is no success where the dictionary is the identity, a rotation of it, or made of pairs
f, -f: each of these reconstructs anything. The symptom is an L0 near d; the cause is seen here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FLAGS = ("near-identity", "opposite pairs", "collapsed", "blown up", "ultra-low density")

BLOCK = 512  # atoms per block of cosines: 64 MiB of float32 against 32,768 atoms
ON_AXIS = 0.9  # largest |coordinate| of an atom that lies along an axis: within 26 degrees of it
AXIS_LIMIT = 0.5  # share of such atoms; random ones of d >= 6 have less than 4% (of d = 2: 57%)
DENSE = 1 / 3  # of d; a rotation has L0 = d, and d/2 where its biases are 0 and rows centred
ORTHOGONAL = 0.25  # `overlap` of an orthonormal basis whose atoms are each moved by 0.38
OPPOSITE = -0.95  # cosine of f + e and -f + e' where the noise has a norm of 0.23
SILENT = 0.5  # active features per row: most rows are reconstructed by a constant
ULTRA_LOW = 1e-5  # of the rows: upper end of the cluster seen near 1e-6..1e-5
# A quarter. A feature is seen on exactly one row with a chance of at most 1/e, whatever its
# density: on few rows no limit above 0.37 could be reached. Densities spread evenly in log over a
# factor above e^4 = 55 stay below it.
ULTRA_LOW_LIMIT = 0.25
ENOUGH_ROWS = 10_000  # with fewer, a feature that fires once says nothing of the density 1e-5


@dataclass(frozen=True)
class Findings:
    """What the detectors say of one member.

    Attributes:
        min_cosine: smallest cosine between two atoms, NaN if unknown.
        axis_share: share of atoms along an axis, NaN if unknown.
        ultra_low_density: share of features that fire, but hardly ever.
        flags: what is wrong, words and order of `FLAGS`; empty when nothing is.
    """

    min_cosine: float
    axis_share: float
    ultra_low_density: float
    flags: tuple[str, ...]


@torch.no_grad()
def detect(dictionary: Tensor | None, firing: Tensor, rows: int, l0: float, fvu: float) -> Findings:
    """All detectors on one member.

    * near-identity: more than half of the atoms along an axis, or `rotated`.
    * opposite pairs: `min_cosine` <= -0.95.
    * collapsed: L0 < 0.5.
    * blown up: FVU not finite or > 1 (worse than the mean row), or L0 not finite. A collapsed
      member is excepted: what it gives, zeros or its bias, is worse than the mean row wherever the
      mean is not zero.
    * ultra-low density: more than a quarter of the features, on at least 10,000 rows.

    Args:
        dictionary: unit rows `[n, d]`; None for a signature of your own that has none: then
            `min_cosine` and `axis_share` are NaN, and the flags that need it are not raised.
        firing: held-out rows on which each feature is active, int `[n]`.
        rows: held-out rows in all.
        l0: active features per row; fvu: fraction of variance unexplained; both held out.
    """
    closest = axes = math.nan
    turned = False
    if dictionary is not None:
        closest, axes = min_cosine(dictionary), axis_share(dictionary)
        turned = rotated(dictionary, firing, l0)
    rare = ultra_low_density(firing, rows)
    collapsed = l0 < SILENT
    finite = math.isfinite(l0) and math.isfinite(fvu)
    raised = (
        axes > AXIS_LIMIT or turned,
        closest <= OPPOSITE,
        collapsed,
        not finite or (fvu > 1 and not collapsed),
        rare > ULTRA_LOW_LIMIT and rows >= ENOUGH_ROWS,
    )
    flags = tuple(word for word, there in zip(FLAGS, raised, strict=True) if there)
    return Findings(closest, axes, rare, flags)


def min_cosine(dictionary: Tensor) -> float:
    """min over i != j of D^_i . D^_j: near -1 if two atoms are opposite.

    A relu code with f and -f takes any number along f, so a dictionary of such pairs reconstructs
    every row. Zero rows are no atoms and are left out; NaN for fewer than two atoms, and for a
    dictionary that is not finite. A block of 512 atoms is compared at a time, which bounds memory.

    Args:
        dictionary: unit rows `[n, d]`.
    """
    atoms = _atoms(dictionary)
    if atoms.shape[0] < 2:
        return math.nan
    least = atoms.new_tensor(math.inf)
    for start in range(0, atoms.shape[0], BLOCK):
        cosines = atoms[start : start + BLOCK] @ atoms[start:].T  # each pair is seen once
        cosines.fill_diagonal_(math.inf)  # an atom with itself
        least = torch.minimum(least, cosines.min())  # which keeps NaN
    return float(least)


def axis_share(dictionary: Tensor) -> float:
    """Share of atoms with max_j |D^_ij| >= 0.9: 1 for the identity, its permutations and signs.

    Zero rows are left out; NaN if there is no other. It says little of d < 4, where random
    directions lie near an axis too.

    Args:
        dictionary: unit rows `[n, d]`.
    """
    atoms = _atoms(dictionary)
    if atoms.shape[0] == 0:
        return math.nan
    return float((atoms.abs().amax(1) >= ON_AXIS).double().mean())


def overlap(dictionary: Tensor, firing: Tensor) -> float:
    """d * weighted mean over i != j of cos(D^_i, D^_j)^2, each pair weighted by p_i p_j.

    p_i is proportional to how often feature i fires. Random directions have an expected value of
    1 for any n and d, an orthonormal basis 0; NaN where fewer than two features fire. Computed as
    (||D^^T P D^||_F^2 - sum p_i^2 ||D^_i||^4) / ((sum p_i)^2 - sum p_i^2): no `[n, n]` array.

    Args:
        dictionary: unit rows `[n, d]`; firing: counts `[n]`.
    """
    if int((firing > 0).sum()) < 2:
        return math.nan
    weights = firing.to(dictionary.device, dictionary.dtype) / firing.max().item()
    square = (dictionary.T @ (weights[:, None] * dictionary)).double().square().sum()
    weights = weights.double()
    own = (weights * dictionary.double().square().sum(1)).square().sum()
    pairs = weights.sum().square() - weights.square().sum()
    return float(dictionary.shape[1] * (square - own) / pairs)


def rotated(dictionary: Tensor, firing: Tensor, l0: float) -> bool:
    """Whether this is a rotated identity: L0 >= d / 3, and `overlap` <= 0.25.

    Both are needed. A row of d numbers that is told by d / 3 or more features has not been made
    sparse, but a dense code alone is merely a bad one. Nearly orthogonal atoms alone may be true
    features. Since no feature is active more than once in a row, L0 >= d / 3 means that at least
    d / 3 of them carry the code, so that `overlap` is a mean over many pairs and random atoms do
    not come near 0.25. Weighting by firing leaves out dead and rare atoms, which is where a larger
    dictionary keeps what its d busy atoms do not need; and rotations are not told from the
    identity itself, so that d busy axes among many dead atoms are found too.

    Signs are not folded: a rotation in both signs (f and -f) has an overlap of 0.5 and is found by
    `min_cosine`.

    Args:
        dictionary: unit rows `[n, d]`; firing: counts `[n]`; l0: active features per row.
    """
    return l0 >= DENSE * dictionary.shape[1] and overlap(dictionary, firing) <= ORTHOGONAL


def ultra_low_density(firing: Tensor, rows: int) -> float:
    """Share of the n features that fire, but on no more than max(1e-5, 1.5 / rows) of the rows.

    On R rows no density between 0 and 1 / R can be seen: below 150,000 rows this counts features
    that fire on a single row, above it those in the "ultralow density cluster" of Bricken et al.
    2023, "Towards Monosemanticity". Rarer ones cannot be told from dead and are not counted.

    Args:
        firing: rows on which each feature is active, int `[n]`.
    """
    if firing.numel() == 0:
        return math.nan
    most = max(ULTRA_LOW * rows, 1.5)
    return float(((firing > 0) & (firing <= most)).double().mean())


def _atoms(dictionary: Tensor) -> Tensor:
    return dictionary[(dictionary != 0).any(1)]
