"""Dictionaries that nothing is learned for: the neurons themselves, and random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.baselines.fixed import Projection, Rectified, as_sae
from ensemble_sae.errors import UserError
from ensemble_sae.randomness import generator
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures.parts import random_directions


def neuron_basis(rows: Tensor, n_dict: int, seed: int) -> Sae:
    """D = I: each neuron is a feature, and the code is the row, with its signs.

    Args:
        rows: `[N, d]`; only their width is read. n_dict, seed: not read: there are d atoms.
    """
    axes = _axes(rows)
    params = {"decoder": axes, "encoder": axes}
    return as_sae("neuron_basis", Projection, params, {}, seed=seed, options={})


def rectified_basis(rows: Tensor, n_dict: int, seed: int, *, l0: float = 10.0) -> Sae:
    """c_j = relu(x_j - t_j): each neuron's largest values, so many that a row has l0 of them.

    t_j >= 0 is the quantile 1 - l0 / d of x_j over the rows: each neuron is active on a share
    l0 / d of them, or on all where it is positive if these are fewer. l0 = d gives relu(x).

    Args:
        rows: `[N, d]`. n_dict, seed: not read: there are d atoms.
        l0: mean number of active neurons per row, in (0, d].

    Raises:
        UserError: l0 is not in its range.
    """
    count, d = rows.shape
    if not 0 < l0 <= d:
        raise UserError(
            "So many neurons cannot be active.", where="l0", found=f"{l0:g}", allowed=f"(0, {d}]"
        )
    silent = round((1 - l0 / d) * count)  # rows on which a neuron is not above its threshold
    threshold = rows.kthvalue(silent, dim=0).values if silent else torch.zeros_like(rows[0])
    params = {"decoder": _axes(rows), "encoder_bias": -threshold.clamp_min(0)}
    return as_sae("rectified_basis", Rectified, params, {}, seed=seed, options={"l0": l0})


def random(rows: Tensor, n_dict: int, seed: int) -> Sae:
    """c = relu(x D^T), D drawn uniformly from the unit sphere.

    Args:
        rows: `[N, d]`; only their width is read.
    """
    atoms = random_directions(n_dict, rows.shape[1], generator(seed, "random baseline")).to(rows)
    params = {"decoder": atoms, "encoder_bias": atoms.new_zeros(n_dict)}
    return as_sae("random", Rectified, params, {}, seed=seed, options={})


def _axes(rows: Tensor) -> Tensor:
    return torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
