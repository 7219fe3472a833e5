"""A nonlinear encoder before a linear dictionary."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures import parts
from ensemble_sae.signatures.protocol import Tensors
from ensemble_sae.signatures.relu import Untied


class Semilinear(Untied):
    """c = relu(relu(x H^T + b_h) E^T + b);  x^ = c D^.  Loss as `untied`.

    Source: the semilinear variant of the sparse-coding code behind Cunningham et al. 2023: if a
    deeper encoder finds much better codes, a linear one is what limits the dictionary. E starts
    such that the code is that of `untied` at its start: H holds directions and their opposites
    (2 d hidden units by default, for `hidden = 0`), and E reads x from them.

    Params: `hidden [h, d]`, `hidden_bias [h]`, `encoder [n, h]`, `encoder_bias [n]`,
    `decoder [n, d]`. Buffers: `l1 []`, `bias_decay []`.
    """

    READS: ClassVar[tuple[str, ...]] = ()  # its encoder reads hidden units, not rows

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        bias_decay: float = 0.0,
        hidden: int = 0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        width = hidden or 2 * d_activation
        half = _frame(-(-width // 2), d_activation, generator)
        weight = torch.cat([half, -half])[:width]
        decoder = parts.random_directions(n_dict, d_activation, generator)
        params = {
            "hidden": weight,
            "hidden_bias": torch.zeros(width),
            "encoder": decoder @ weight.mT,
            "encoder_bias": torch.zeros(n_dict),
            "decoder": decoder,
        }
        return cls.finish(params, {"l1": l1, "bias_decay": bias_decay}, d_activation, options)

    @classmethod
    def scores(cls, params: Tensors, buffers: Tensors, rows: Tensor, atoms: Tensor) -> Tensor:
        """z = relu(x H^T + b_h) E^T + b."""
        hidden = torch.relu(parts.affine(rows, params["hidden"], params["hidden_bias"]))
        return parts.affine(hidden, params["encoder"], params["encoder_bias"])

    @classmethod
    def products(cls, hyperparameters: dict[str, Any]) -> float:
        """E reads 2 d hidden units, H is small."""
        return 9.0


def _frame(count: int, d_activation: int, generator: torch.Generator) -> Tensor:
    """A `[count, d]` with orthonormal columns (or rows, for count < d): x A^T A is x."""
    tall = torch.randn(max(count, d_activation), min(count, d_activation), generator=generator)
    basis = torch.linalg.qr(tall).Q
    return basis if count >= d_activation else basis.mT
