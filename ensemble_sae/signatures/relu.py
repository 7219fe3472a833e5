"""The relu family: untied, tied, tied_centered, affine."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemble_sae.signatures import parts
from ensemble_sae.signatures.linear import LinearDictionary, Pass, encoder_start
from ensemble_sae.signatures.protocol import Tensors


class Untied(LinearDictionary):
    """c = relu(x E^T + b);  x^ = c D^;  D^ = the rows of D scaled to unit norm.

    Loss: mean over B and d of (x^ - x)^2 + l1 * mean_B sum_n |c| + bias_decay * ||b||_2.
    The gradient flows through the normalisation of D; E is not normalised.

    Source: Cunningham et al. 2023, "Sparse Autoencoders Find Highly Interpretable Features in
    Language Models", section 2; the L2 norm of the encoder bias as in the sparse-coding code
    that the paper grew from. Deviation: E starts equal to D, with unit rows.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`.
    Buffers: `l1 []`, `bias_decay []`.
    """

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        bias_decay: float = 0.0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = encoder_start(n_dict, d_activation, generator)
        return cls.finish(params, {"l1": l1, "bias_decay": bias_decay}, d_activation, options)

    @classmethod
    def penalty(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        decay = buffers["bias_decay"] * torch.linalg.vector_norm(params["encoder_bias"])
        return buffers["l1"] * parts.mean_sum(seen.code) + decay


class Tied(Untied):
    """c = relu(x D^^T + b);  x^ = c D^;  D^ = the rows of D scaled to unit norm.

    Loss as `untied`; the gradient flows through D^ from the encoder and the decoder side.

    Source: Cunningham et al. 2023, section 2 (M and M^T).

    Params: `decoder [n, d]`, `encoder_bias [n]`.
    Buffers: `l1 []`, `bias_decay []`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("encoder_bias", "decoder")

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        bias_decay: float = 0.0,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = {
            "decoder": parts.random_directions(n_dict, d_activation, generator),
            "encoder_bias": torch.zeros(n_dict),
        }
        return cls.finish(params, {"l1": l1, "bias_decay": bias_decay}, d_activation, options)

    @classmethod
    def scores(cls, params: Tensors, buffers: Tensors, rows: Tensor, atoms: Tensor) -> Tensor:
        """z = x D^^T + b."""
        return parts.affine(rows, atoms, params["encoder_bias"])


class TiedCentered(Tied):
    """`tied` on x - centre, the centre learned (from the sample's mean on) unless set otherwise.

    With `centring = "mean"` it stays the mean; `whitening` makes the covariance the identity too.
    Source: the centred variant of the sparse-coding code behind Cunningham et al. 2023.
    """

    OPTIONS: ClassVar[dict[str, Any]] = Tied.OPTIONS | {"centring": "learned"}


class Affine(LinearDictionary):
    """c = relu((x - centre) E^T + b);  x^ = c D^ + centre;  D^ = D's rows at unit norm.

    Loss: mean over B and d of (x^ - x)^2 + l1 * mean_B sum_n c.

    Source: Bricken et al. 2023, "Towards Monosemanticity", section "Features as a Sparse
    Decomposition" and appendix "Sparse autoencoder training details" (pre-encoder bias,
    Kaiming-uniform start). Deviations: the unit norm of D's rows is kept inside the loss unless
    `unit_norm = "project"`; the centre (their b_d) starts at the sample's mean, not at its
    geometric median.

    Params: `encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`, `centre [d]`.
    Buffers: `l1 []`.
    """

    OPTIONS: ClassVar[dict[str, Any]] = LinearDictionary.OPTIONS | {"centring": "learned"}

    @classmethod
    def init(
        cls,
        d_activation: int,
        n_dict: int,
        *,
        generator: torch.Generator,
        l1: float = 1e-3,
        **options: Any,
    ) -> tuple[Tensors, Tensors]:
        params = {
            "encoder": parts.kaiming_uniform(n_dict, d_activation, generator),
            "encoder_bias": torch.zeros(n_dict),
            "decoder": parts.kaiming_uniform(n_dict, d_activation, generator),
        }
        return cls.finish(params, {"l1": l1}, d_activation, options)

    @classmethod
    def penalty(cls, params: Tensors, buffers: Tensors, seen: Pass) -> Tensor:
        return buffers["l1"] * parts.mean_sum(seen.code)
