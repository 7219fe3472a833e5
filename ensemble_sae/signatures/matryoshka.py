"""Nested dictionaries: every prefix of the code reconstructs by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.signatures.linear import Pass, encoder_start
from ensemble_sae.signatures.protocol import Tensors
from ensemble_sae.signatures.topk import UNSET, BatchTopK


class Matryoshka(BatchTopK):
    """The code of `batchtopk`; loss: the sum over prefixes m of mean (x^_m - x)^2.

    x^_m uses the first n / 2^(P-1-m) features (rounded up), m = 0 .. P-1, so that the first ones
    learn what is general and the later ones refine it.

    Source: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse
    Autoencoders", section 3. Deviation: prefixes are halved sizes, not drawn for each batch.

    Params: as `topk`.
    Buffers: `k []`, `threshold []`, `prefix_weight [P]` (ones; its length is the number P).
    """

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        k: float = 32.0,
        prefixes: int = 5,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        own: dict[str, float | Tensor] = {
            "k": k,
            "threshold": UNSET,
            "prefix_weight": torch.ones(prefixes),
        }
        return cls.finish(params, own, d_activation, options)

    @classmethod
    def error(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        """The sum of the prefixes' errors; each piece of the code is decoded once."""
        total, residual, start = seen.rows.new_zeros(()), -seen.rows, 0
        if "decoder_bias" in params:
            residual = residual + params["decoder_bias"]
        sizes = prefix_sizes(seen.code.shape[1], buffers["prefix_weight"].shape[0])
        for weight, stop in zip(buffers["prefix_weight"], sizes, strict=True):
            residual = residual + seen.code[:, start:stop] @ seen.atoms[start:stop]
            total, start = total + weight * residual.square().mean(), stop
        return total

    @classmethod
    def report(
        cls, params: Tensors, buffers: Tensors, batch: Tensor, seen: Pass, error: Tensor
    ) -> Tensors:
        whole = (seen.reconstruction - seen.rows).square().mean()  # not the sum over prefixes
        return super().report(params, buffers, batch, seen, whole)


def prefix_sizes(n_dict: int, prefixes: int) -> list[int]:
    """Features of each prefix, the last one all of them."""
    return [-(-n_dict // 2 ** (prefixes - 1 - m)) for m in range(prefixes)]
