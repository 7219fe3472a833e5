"""The directions that members start from: random ones, or ones that a sample of rows suggests.

Source of the starts from rows: Peigné 2023, "Taking features out of superposition with sparse
autoencoders more quickly with informed initialization" (SERI MATS 3.0): rows hold true features,
so rows are good first directions; rare features need help to be among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ensemble_sae.config import start as words
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.signatures.parts import unit_rows
from ensemble_sae.train.rare import MIXTURES

JITTER = 0.1  # norm of the noise on a direction that is used again


def directions(
    kind: str,
    rows: Tensor,
    n_dict: int,
    *,
    generator: torch.Generator,
    rare: float = words.Start.rare,
) -> Tensor:
    """First directions of one member, `[n_dict, d]` float32 on the CPU.

    * orthogonal: blocks of d orthonormal rows (the last one cut), drawn uniformly.
    * xavier: U(-a, a), a = sqrt(6 / (d + n)). Glorot & Bengio 2010, eq. 16. Not of unit norm.
    * kaiming: U(-a, a), a = sqrt(6 / d), of the variance 2 / fan-in (d, the encoder's) in He et
      al. 2015, section 2.2, who draw from a normal distribution. Not of unit norm.
    * rows: rows of the sample, without replacement while there are enough.
    * svd: the sample's right singular vectors, strongest first; see `singular`.
    * mean, centroid, outlier: rows, but round(rare * n) directions are rare-feature vectors as
      `train.rare` makes them: the last ones, since nested dictionaries put common features first.
      The rows used for them are not used again while there are others.

    All from rows are unit rows. The sample is cleared of rows that are zero or not finite, and
    exact copies (the first token's rows, which have no context, are the same in every document)
    are kept once. Two directions that start equal get the same gradient and stay equal; so where
    the sample is used up it is used again in turn, with noise of 0.1 times the direction's norm.

    Args:
        rows: the sample `[S, d]`, in the units of the training; for a kind that looks at none,
            `[0, d]` will do. `outlier` takes time in S^2 d, the others less.
        generator: the only source of randomness: equal arguments give equal directions.

    Raises:
        UserError: an unknown kind; a sample without a usable row, or whose rows are all the same.
    """
    d = rows.shape[1]
    if kind in SHAPES:
        return SHAPES[kind](n_dict, d, generator)
    if kind not in (*words.ROWS, *MIXTURES):
        known = (*SHAPES, *words.ROWS, *MIXTURES)
        raise UserError(
            "No directions are made for this kind of start.",
            where="start",
            found=repr(kind),
            allowed=nearest(kind, known),
        )
    sample = _usable(rows)
    if kind == "svd":
        return singular(sample, n_dict, generator).float()
    count = round(rare * n_dict) if kind in MIXTURES else 0
    return _mixture(kind, sample, n_dict - count, count, generator).float()


def orthogonal(n_dict: int, d: int, generator: torch.Generator) -> Tensor:
    """Stacked blocks of at most d orthonormal rows: `[n_dict, d]`.

    Q of a normal matrix, the signs taken from R's diagonal, which makes Q uniform: Mezzadri 2007,
    "How to generate random matrices from the classical compact groups", section 5.
    """
    blocks = []
    for first in range(0, n_dict, d):
        normal = torch.randn(d, d, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(normal)
        blocks.append((q * r.diagonal().sign()).T[: n_dict - first])
    return torch.cat(blocks).float()


def xavier(n_dict: int, d: int, generator: torch.Generator) -> Tensor:
    """U(-a, a) with a = sqrt(6 / (d + n)): `[n_dict, d]`."""
    return _uniform(n_dict, d, math.sqrt(6 / (d + n_dict)), generator)


def kaiming(n_dict: int, d: int, generator: torch.Generator) -> Tensor:
    """U(-a, a) with a = sqrt(6 / d): `[n_dict, d]`."""
    return _uniform(n_dict, d, math.sqrt(6 / d), generator)


def singular(rows: Tensor, n_dict: int, generator: torch.Generator) -> Tensor:
    """V, then -V, then random mixtures: unit rows `[n_dict, d]` from rows `[S, d]`.

    V are the r right singular vectors of the sample with a singular value above rounding. It is
    not centred: a dictionary without a decoder bias has to reconstruct the mean as well (and
    where the sweep centres its rows, they come centred). Of v and -v the one comes first that the
    rows' mean is on the side of; a relu code needs both to tell a row's coordinate. What more is
    asked for is drawn from N(0, X^T X): coefficients on V, normal, of singular value strength.
    """
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    kept = values > values[0] * max(rows.shape) * torch.finfo(rows.dtype).eps
    values, vectors = values[kept], vectors[kept]
    vectors = torch.where((vectors @ rows.mean(0) < 0)[:, None], -vectors, vectors)
    more = max(0, n_dict - 2 * len(vectors))
    normal = torch.randn(more, len(vectors), generator=generator, dtype=rows.dtype)
    return torch.cat([vectors, -vectors, unit_rows(normal * values @ vectors)])[:n_dict]


SHAPES: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "orthogonal": orthogonal,
    "xavier": xavier,
    "kaiming": kaiming,
}


def _uniform(n_dict: int, d: int, bound: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(n_dict, d, generator=generator) - 1) * bound


def _usable(rows: Tensor) -> Tensor:
    """Rows that are finite and not zero, exact copies once: sorted, float64 on the CPU."""
    rows = rows.detach().to("cpu", torch.float64)
    norms = torch.linalg.vector_norm(rows, dim=1)
    kept = torch.unique(rows[norms.isfinite() & (norms > 0)], dim=0)
    if len(kept) == 0:
        raise UserError(
            "No row of the sample has a direction to start from.",
            where="start",
            found=f"{len(rows):,} rows, all zero or not finite",
            allowed="at least one row that is neither",
            next_step="start from 'orthogonal', or harvest other rows",
        )
    return kept


def _mixture(kind: str, rows: Tensor, common: int, rare: int, generator: torch.Generator) -> Tensor:
    """`common` rows and then `rare` rare-feature vectors, unit rows `[common + rare, d]`."""
    used = torch.zeros(len(rows), dtype=torch.bool)
    last = rows[:0]
    if rare:
        found = MIXTURES[kind](rows, rare, generator)
        if len(found.of) == 0:
            raise UserError(
                "The rows of the sample are all the same, so none is rare.",
                where=f"start {kind!r}",
                found="1 distinct row",
                allowed="at least 2",
                next_step="start from 'rows' or 'orthogonal'",
            )
        last = _in_turn(found.vectors, rare, len(found.of), generator)
        used[found.of[:rare]] = True
    order = torch.randperm(len(rows), generator=generator)
    order = order[used[order].int().argsort(stable=True)]  # those used come last
    return torch.cat([_in_turn(rows[order], common, int((~used).sum()), generator), last])


def _in_turn(vectors: Tensor, count: int, fresh: int, generator: torch.Generator) -> Tensor:
    """`count` unit rows: the vectors in turn, with noise after the first `fresh`."""
    chosen = unit_rows(vectors)[torch.arange(count) % len(vectors)]
    again = chosen[fresh:]
    noise = torch.randn(again.shape, generator=generator, dtype=again.dtype)
    return torch.cat([chosen[:fresh], unit_rows(again + JITTER * unit_rows(noise))])
