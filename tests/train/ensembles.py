"""Small ensembles to test with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from making import Pair, copied, rows
from torch import Tensor

from ensemble_sae.signatures import BUILTIN, Tensors
from ensemble_sae.train import Dynamics, FunctionalEnsemble

D, N, B, SEED = 6, 9, 13, 3
POOL = [rows(20, D, seed=7), rows(11, D, seed=8)]  # what resampling draws from


def stream(count: int, first: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [rows(B, D, seed=100 + step, dtype=dtype) for step in range(first, first + count)]


def ensemble(
    name: str, pairs: Sequence[Pair], *dynamics: Mapping[str, Any], **options: Any
) -> FunctionalEnsemble:
    """Copies of the members; those that are given no dynamics have none."""
    each = [*dynamics, *[{}] * (len(pairs) - len(dynamics))]
    return FunctionalEnsemble.from_members(
        BUILTIN[name],
        [copied(pair) for pair in pairs],
        dynamics=[Dynamics(**values) for values in each],
        **{"lr": 0.01, "batch_size": B, "seed": SEED, **options},
    )


def stepped(ensemble: FunctionalEnsemble, batches: Sequence[Tensor]) -> FunctionalEnsemble:
    """Step, and resample where that is asked for."""
    for batch in batches:
        ensemble.step(batch)
        if ensemble.wants_rows():
            ensemble.resample([part.to(batch) for part in POOL])
    return ensemble


def kept(ensemble: FunctionalEnsemble) -> Tensors:
    """A copy of the state."""
    return {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}


def of_member(state: Tensors, k: int, *groups: str) -> Tensors:
    """A member's part of a state, in these groups."""
    return {
        name: tensor[k].clone()
        for name, tensor in state.items()
        if name.split("/")[0] in groups and tensor.dim()
    }
