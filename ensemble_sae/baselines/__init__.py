"""What sparse autoencoders are compared with: dictionaries learned, or chosen, in other ways.

A baseline learns from rows and gives an `Sae`, as a run does: all that is measured of a member can
be measured of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.baselines.axes import neuron_basis, random, rectified_basis
from ensemble_sae.baselines.clusters import kmeans, kmedoids
from ensemble_sae.baselines.components import ica, nmf, pca, pca_of, sparse_pca
from ensemble_sae.baselines.fixed import pursued
from ensemble_sae.baselines.ksvd import ksvd_nonnegative, ksvd_omp
from ensemble_sae.baselines.rica import rica
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.run.sae import Sae

BASELINES: dict[str, Callable[..., Sae]] = {
    "neuron_basis": neuron_basis,
    "rectified_basis": rectified_basis,
    "random": random,
    "pca": pca,
    "ica": ica,
    "nmf": nmf,
    "sparse_pca": sparse_pca,
    "kmeans": kmeans,
    "kmedoids": kmedoids,
    "rica": rica,
    "ksvd_omp": ksvd_omp,
    "ksvd_nonnegative": ksvd_nonnegative,
}

__all__ = ["BASELINES", "fit", "pursued"]


def fit(name: str, rows: Tensor | ChunkStore, n_dict: int, *, seed: int = 0, **options: Any) -> Sae:
    """Learn a baseline from rows.

    Args:
        name: one of `BASELINES`.
        rows: `[N, d]`, finite; learned from in float32. Or a store: PCA streams all of its
            training chunks, the others learn from the first of them.
        n_dict: atoms. A neuron basis, PCA and ICA have at most d, whatever is asked for; NMF and
            sparse PCA leave out atoms that come out zero. `n_dict` of the result is what there is.
        seed: of all that is random; equal seeds give equal dictionaries.
        options: the baseline's own, by name; they become the result's hyper-parameters.

    Raises:
        UserError: an unknown name or option; rows that are not `[N, d]`, not finite or all equal;
            what the baseline itself refuses.
    """
    if name not in BASELINES:
        raise UserError("Unknown baseline.", found=repr(name), allowed=nearest(name, BASELINES))
    learn = BASELINES[name]
    known = [
        p.name for p in inspect.signature(learn).parameters.values() if p.kind == p.KEYWORD_ONLY
    ]
    for option in options:
        if option not in known:
            raise UserError(
                f"The baseline {name!r} has no such option.",
                found=repr(option),
                allowed=nearest(option, known),
            )
    if n_dict < 1:
        raise UserError("A dictionary needs atoms.", found=str(n_dict), allowed="n_dict >= 1")
    if isinstance(rows, ChunkStore):
        if name == "pca":
            return pca_of(_parts(rows), min(n_dict, rows.d_activation), seed)
        rows = next(_parts(rows))
    _check(rows)
    return learn(rows.detach().float(), n_dict, seed, **options)


def _parts(store: ChunkStore) -> Iterator[Tensor]:
    """The training rows of a store, a chunk at a time."""
    for chunk in store.chunks():
        rows = store.activations(chunk.index).float()
        _check(rows)
        yield rows


def _check(rows: Tensor) -> None:
    if rows.dim() != 2 or 0 in rows.shape:
        raise UserError(
            "These are no rows to learn from.", found=str(list(rows.shape)), allowed="[N, d]"
        )
    finite = torch.isfinite(rows).all(1)
    if not bool(finite.all()):
        raise UserError(
            "Rows must be finite.",
            found=f"{int((~finite).sum()):,} of {len(rows):,} that are not, the first at "
            f"{int((~finite).nonzero()[0])}",
        )
    if bool((rows == rows[0]).all()):
        raise UserError(
            "All rows are equal: there is nothing to learn.", found=f"{len(rows):,} rows"
        )
