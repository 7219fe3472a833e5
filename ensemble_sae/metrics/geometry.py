"""How the atoms of a dictionary share its dimensions: capacity, spread, clusters.

Rows that are zero or not finite are no atoms and do not count for the others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_sae.metrics.matching import FOUND, cosine_blocks, usable

BLOCK = 4096  # atoms at a time: 16 MiB of float64 at d = 512
EDGES = 2**22  # close pairs that are kept before they are joined: 64 MiB


@torch.no_grad()
def capacity(dictionary: Tensor) -> Tensor:
    """C_i = (W_i . W_i)^2 / sum_j (W_i . W_j)^2: the share of a dimension that an atom has.

    1 if it is orthogonal to all others, 1/k for k copies of one; the sum over all atoms is at most
    d. Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks", section 2, with the
    embeddings as rows.

    Computed as (W_i . W_i)^2 / W_i^T (W^T W) W_i in float64: no `[n, n]` array, and 2 n d^2
    products instead of n^2 d. The error is about 1e-16 times the square of the ratio of the largest
    norm to the atom's own.

    Args:
        dictionary: `[n, d]`, of any norms.

    Returns:
        `[n]`, float64; 0 for a zero row, NaN for one that is not finite.
    """
    parts = usable(dictionary).split(BLOCK)
    width = dictionary.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=dictionary.device)
    for part in parts:
        rows = dictionary[part].double()
        gram.addmm_(rows.T, rows)
    zero = ~(dictionary != 0).any(1)
    result = torch.where(zero, 0.0, math.nan).double()
    for part in parts:
        rows = dictionary[part].double()
        own, shared = rows.square().sum(1), (rows @ gram).mul_(rows).sum(1)
        result[part] = (own.square() / shared).clamp(max=1)
    return result


@torch.no_grad()
def inverse_simpson(dictionary: Tensor) -> Tensor:
    """1 / sum_j p_j^2 with p_j = w_j^2 / ||w||^2: the number of coordinates an atom uses.

    1 for an atom along an axis, k for one with equal parts along k of them; about d/3 for a random
    direction. Simpson 1949, "Measurement of Diversity", of squared coordinates for species.

    Args:
        dictionary: `[n, d]`, of any norms.

    Returns:
        `[n]`, float64, 1 to d; NaN for a row that is zero or not finite.
    """
    result = dictionary.new_full((dictionary.shape[0],), math.nan, dtype=torch.float64)
    for part in usable(dictionary).split(BLOCK):
        rows = dictionary[part].double()
        rows /= rows.abs().amax(1, keepdim=True)  # so that no fourth power is too large or small
        squares = rows.square()
        result[part] = squares.sum(1).square() / squares.square().sum(1)
    return result


@torch.no_grad()
def clusters(atoms: Tensor, *, threshold: float = FOUND, absolute: bool = False) -> Tensor:
    """Groups of atoms that are joined by cosines of at least `threshold`.

    The connected components of the graph of close pairs (single linkage): the ends of a chain of
    close pairs are in one cluster, however far apart they are. Cosines are rounded to about 1e-7
    where the atoms are float32: a threshold of 1 finds no copies.

    Args:
        atoms: `[n, d]`, of any norms.
        absolute: |cos| joins, so that f and -f are in one cluster.

    Returns:
        A label per atom, int64 `[n]`: 0 is the largest cluster, and of equal ones the one with the
        lowest index comes first. -1 for a row that is zero or not finite.
    """
    kept = usable(atoms)
    roots = np.arange(kept.numel())  # of each atom the lowest one that it is known to be joined to
    pending: list[np.ndarray] = []
    for start in range(0, kept.numel(), BLOCK):
        stop = start + BLOCK
        blocks = cosine_blocks(atoms, kept[:stop], atoms, kept[start:stop], absolute=absolute)
        for top, left, cosines in blocks:
            edges = (cosines >= threshold).nonzero().cpu().numpy()
            edges += np.array([top, start + left])
            pending.append(edges[roots[edges[:, 0]] != roots[edges[:, 1]]])
            if sum(map(len, pending)) > EDGES:
                roots, pending = _joined(roots, pending), []
    roots = _joined(roots, pending)
    labels = torch.full((atoms.shape[0],), -1, device=atoms.device)
    labels[kept] = torch.from_numpy(_by_size(roots)).to(atoms.device)
    return labels


def _joined(roots: np.ndarray, pending: list[np.ndarray]) -> np.ndarray:
    """The roots after these edges `[e, 2]` too."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known = np.stack([np.arange(len(roots)), roots], axis=1)
    edges = np.concatenate([known, *pending])
    shape = (len(roots), len(roots))
    graph: Any = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=shape)
    components = connected_components(graph, directed=False)[1]
    lowest = np.unique(components, return_index=True)[1]
    return lowest[components]


def _by_size(roots: np.ndarray) -> np.ndarray:
    """Labels from roots: 0 for the largest cluster, of equal ones the lowest root first."""
    _, cluster, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    labels = np.empty_like(order)
    labels[order] = np.arange(len(order))
    return labels[cluster]
