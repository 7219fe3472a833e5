"""Members of an ensemble on held-out rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from ensemble_sae.metrics.reconstruction import Variance, fvu
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.train import stacking
from ensemble_sae.train.ensemble import FunctionalEnsemble
from ensemble_sae.train.slices import slices


@dataclass(frozen=True)
class Evaluation:
    """What held-out rows say of K members of n features.

    Attributes:
        rows: held-out rows seen.
        fvu, l0, dead: `[K]`: fraction of variance unexplained; mean active features per row;
            share of features that fire on no row.
        firing: `[K, n]` int64: rows on which each feature is active.
        strength: `[K, n]` float32: mean |activation| over the rows on which it is active, else 0.
    """

    rows: int
    fvu: Tensor
    l0: Tensor
    dead: Tensor
    firing: Tensor
    strength: Tensor


@torch.no_grad()
def evaluate(ensemble: FunctionalEnsemble, batches: Iterable[Tensor]) -> Evaluation | None:
    """Reconstruct held-out batches `[B, d]` with every member, by its averaged params if there are.

    None for a signature of your own that lacks `encode` or `decode`.
    """
    encode, decode = optional(ensemble.signature, "encode"), optional(ensemble.signature, "decode")
    if encode is None or decode is None:
        return None
    encode_all = vmap(encode, in_dims=(0, 0, None))
    decode_all = vmap(decode, in_dims=(0, 0, 0))
    wanted_of = optional(ensemble.signature, "target") or (lambda params, buffers, batch: batch)
    stacked, around = ensemble.evaluated(), ensemble.evaluated_buffers()
    variance, sums = Variance(), _Sums(ensemble)
    for batch in batches:
        # What is to be reconstructed is a matter of the signature, the same for all its members.
        wanted = wanted_of(*ensemble.member(0), batch)
        variance.add(wanted)
        one_kind = torch.zeros(ensemble.size, dtype=torch.bool)
        for start, stop, _ in slices(stacked, one_kind, batch.shape[0], ensemble.device):
            params = stacking.slice_of(stacked, start, stop)
            buffers = stacking.slice_of(around, start, stop)
            code = encode_all(params, buffers, batch)
            error = decode_all(params, buffers, code) - wanted
            sums.add(start, stop, code, error)
    return sums.result(variance)


class _Sums:
    def __init__(self, ensemble: FunctionalEnsemble) -> None:
        self._ensemble = ensemble
        self._error = torch.zeros(ensemble.size, dtype=torch.float64, device=ensemble.device)
        self._firing: Tensor | None = None
        self._strength: Tensor | None = None

    def add(self, start: int, stop: int, code: Tensor, error: Tensor) -> None:
        """Add a slice's code `[k, B, n]` and error `[k, B, d]` on one batch."""
        if self._firing is None or self._strength is None:
            shape = (self._ensemble.size, code.shape[-1])
            self._firing = code.new_zeros(shape, dtype=torch.int64)
            self._strength = code.new_zeros(shape, dtype=torch.float64)
        self._error[start:stop] += error.double().square().sum((1, 2))
        self._firing[start:stop] += (code != 0).sum(1)
        self._strength[start:stop] += code.abs().sum(1)

    def result(self, variance: Variance) -> Evaluation | None:
        if self._firing is None or self._strength is None:
            return None
        return Evaluation(
            rows=variance.rows,
            fvu=fvu(self._error, variance.total),
            l0=self._firing.sum(1) / variance.rows,
            dead=(self._firing == 0).double().mean(1),
            firing=self._firing,
            strength=(self._strength / self._firing.clamp_min(1)).float(),
        )
