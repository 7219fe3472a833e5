"""Linear components: PCA, ICA, nonnegative and sparse factors, all fitted by scikit-learn.

Rows are fitted in float32 on the CPU; what comes back is on the rows' device.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ensemble_sae.baselines.fixed import ByFista, Filters, Projection, as_sae
from ensemble_sae.errors import UserError
from ensemble_sae.randomness import permutation
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures.parts import unit_rows

PCA_BLOCK = 8192  # rows per update


def pca(rows: Tensor, n_dict: int, seed: int) -> Sae:
    """The n_dict directions of most variance, most first; c = (x - mean) D^T, signed.

    A block of rows at a time. Exact where all d components are kept; with fewer, what earlier
    blocks had outside of the components kept is forgotten.

    Source: Ross et al. 2008, "Incremental Learning for Robust Visual Tracking", section 3.1
    (scikit-learn's IncrementalPCA).

    Args:
        rows: `[N, d]`; n_dict: at most d, else d; seed: not read.

    Raises:
        UserError: fewer rows than components.
    """
    return pca_of(iter([rows]), _at_most(n_dict, rows), seed)


def pca_of(parts: Iterator[Tensor], n_dict: int, seed: int) -> Sae:
    """PCA of rows that come in parts `[N_i, d]`, one of which is in memory at a time; see `pca`.

    Raises:
        UserError: a part has fewer rows than components.
    """
    from sklearn.decomposition import IncrementalPCA
    from sklearn.utils import gen_batches

    model = IncrementalPCA(n_dict)
    for part in parts:
        enough(part, n_dict)
        array = as_array(part)
        for block in gen_batches(len(array), max(PCA_BLOCK, n_dict), min_batch_size=n_dict):
            model.partial_fit(array[block])
    params = {"decoder": like(model.components_, part)}
    params["encoder"] = params["decoder"]
    buffers = {"centre": like(model.mean_, part)}
    return as_sae("pca", Projection, params, buffers, seed=seed, options={})


def ica(
    rows: Tensor,
    n_dict: int,
    seed: int,
    *,
    which: Literal["mixing", "unmixing"] = "mixing",
    max_iter: int = 500,
    tol: float = 1e-4,
) -> Sae:
    """Independent components of centred, whitened rows, by FastICA with the contrast log cosh.

    x - mean = M s with sources s of unit variance, s = U (x - mean). An atom is a column of M:
    where rows move when a source does, which is what a dictionary's atom means. The code is the
    source times its column's length. `which = "unmixing"` takes the rows of U instead: the
    directions that the sources are read off by. Signed codes; with d components exact.

    Source: Hyvärinen & Oja 2000, "Independent Component Analysis: Algorithms and Applications",
    section 6 (parallel form).

    Args:
        rows: `[N, d]`; n_dict: at most d, else d: the components of most variance.
        max_iter, tol: of the iteration; `converged` in the hyper-parameters says which ended it.

    Raises:
        UserError: fewer rows than components; an unknown `which`.
    """
    from sklearn.decomposition import FastICA

    if which not in ("mixing", "unmixing"):
        raise UserError("Unknown kind of direction.", found=which, allowed="mixing, unmixing")
    n_dict = _at_most(n_dict, rows)
    model = FastICA(n_dict, whiten="unit-variance", max_iter=max_iter, tol=tol, random_state=seed)
    converged = fitted(model, as_array(rows))
    unmixing, mixing = like(model.components_, rows), like(model.mixing_.T, rows)
    fixed = mixing if which == "mixing" else unmixing
    lengths = torch.linalg.vector_norm(fixed, dim=1, keepdim=True)
    scale = lengths if which == "mixing" else 1 / lengths
    params = {"encoder": unmixing * scale, "decoder": mixing / scale}
    buffers = {"centre": like(model.mean_, rows)}
    options = {"which": which, "max_iter": max_iter, "tol": tol, "converged": converged}
    signature = Projection if which == "mixing" else Filters
    return as_sae("ica", signature, params, buffers, seed=seed, options=options)


def nmf(
    rows: Tensor,
    n_dict: int,
    seed: int,
    *,
    max_iter: int = 200,
    batch_size: int = 1024,
    iterations: int = 200,
) -> Sae:
    """relu(x) = c D with c >= 0 and D >= 0, in mini-batches; c by nonnegative least squares.

    Negative entries are set to zero, as rows must be nonnegative: what they say is lost, and what
    is reconstructed is relu(x). Shifting rows instead would make all of them alike, most of each
    the shift. Atoms that come out zero are left out.

    Source: Lefèvre et al. 2011, "Online Algorithms for Nonnegative Matrix Factorization with the
    Itakura-Saito Divergence", the online algorithm, with squared errors (scikit-learn's
    MiniBatchNMF).

    Args:
        max_iter: passes over the rows, at most. iterations: of the code (`pursuit.fista`, l1 = 0).

    Raises:
        UserError: no entry of the rows is positive.
    """
    from sklearn.decomposition import MiniBatchNMF

    if not bool((rows > 0).any()):
        raise UserError(
            "NMF reads relu(x), which is zero for all rows.", allowed="positive entries"
        )
    model = MiniBatchNMF(n_dict, batch_size=batch_size, max_iter=max_iter, random_state=seed)
    converged = fitted(model, as_array(rows.clamp_min(0)))
    params = {"decoder": _without_zeros(unit_rows(like(model.components_, rows)))}
    buffers = {
        "input_floor": rows.new_zeros(()),
        "l1": rows.new_zeros(()),
        "iterations": torch.tensor(iterations, device=rows.device),
    }
    options = {"max_iter": max_iter, "batch_size": batch_size, "iterations": iterations}
    options["converged"] = converged
    return as_sae("nmf", ByFista, params, buffers, seed=seed, options=options)


def sparse_pca(
    rows: Tensor,
    n_dict: int,
    seed: int,
    *,
    alpha: float = 0.1,
    ridge: float = 0.01,
    max_iter: int = 20,
    max_rows: int = 1000,
) -> Sae:
    """Components with few nonzero entries: min 1/2 ||X - C D||^2 + alpha ||D||_1, ||C_i|| <= 1.

    X is the centred sample, scaled to ||X|| = d: entries of D are about 1 where rows vary alike in
    all directions, so that an alpha means the same for any rows. C_i is a component's code over
    the sample. c of a row is the ridge regression (x - mean) D^T (D D^T + ridge)^-1 on unit
    atoms; signed, no zeros. Atoms that come out zero are left out.

    Source: Mairal et al. 2010, "Online Learning for Matrix Factorization and Sparse Coding",
    section 5, on sparse PCA (scikit-learn's MiniBatchSparsePCA).

    Args:
        alpha: larger gives sparser atoms, from 0 to about sqrt(d).
        max_iter: passes over the d columns, at most; 5 of them take about half a minute of a core
            at d = n = 256.
        max_rows: in the sample, which is drawn at random; the time grows with it, not with N.

    Raises:
        UserError: alpha is so large that all atoms are zero.
    """
    from sklearn.decomposition import MiniBatchSparsePCA

    sampled = sample(rows, max_rows, seed)
    model = MiniBatchSparsePCA(n_dict, alpha=alpha, max_iter=max_iter, random_state=seed)
    centre = sampled.mean(0)
    centred = sampled - centre
    scale = torch.linalg.vector_norm(centred) / rows.shape[1]
    converged = fitted(model, as_array(centred / scale))
    atoms = _without_zeros(unit_rows(like(model.components_, rows)))
    if not len(atoms):
        raise UserError(
            "All components are zero.", where="alpha", found=f"{alpha:g}", next_step="a smaller one"
        )
    gram = atoms @ atoms.mT + ridge * torch.eye(len(atoms)).to(atoms)
    params = {"decoder": atoms, "encoder": torch.linalg.solve(gram, atoms)}
    buffers = {"centre": centre}
    options = {"alpha": alpha, "ridge": ridge, "max_iter": max_iter, "max_rows": max_rows}
    options["converged"] = converged
    return as_sae("sparse_pca", Projection, params, buffers, seed=seed, options=options)


def as_array(rows: Tensor) -> np.ndarray:
    """Rows as scikit-learn takes them, `[N, d]` float32."""
    return rows.detach().cpu().float().numpy()


def like(array: np.ndarray, rows: Tensor) -> Tensor:
    """What scikit-learn gave, on the rows' device and in their dtype."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(rows)


def fitted(model: Any, array: np.ndarray) -> bool:
    """Fit a model of scikit-learn; returns whether it converged. Other warnings are passed on."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.fit(array)
    others = [warning for warning in seen if not issubclass(warning.category, ConvergenceWarning)]
    for other in others:
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return len(others) == len(seen)


def sample(rows: Tensor, most: int, seed: int) -> Tensor:
    """At most so many of the rows, drawn without replacement, in their order."""
    if len(rows) <= most:
        return rows
    chosen = permutation(len(rows), seed, "sample for a baseline")[:most].sort().values
    return rows[chosen.to(rows.device)]


def enough(rows: Tensor, wanted: int) -> None:
    """Raises a UserError if there are fewer rows than that."""
    if len(rows) < wanted:
        raise UserError(
            "There are too few rows to learn so many atoms from.",
            found=f"{len(rows):,} rows",
            allowed=f"{wanted:,} or more",
        )


def _at_most(n_dict: int, rows: Tensor) -> int:
    n_dict = min(n_dict, rows.shape[1])
    enough(rows, n_dict)
    return n_dict


def _without_zeros(atoms: Tensor) -> Tensor:
    return atoms[(atoms != 0).any(1)]
