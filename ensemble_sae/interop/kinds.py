"""What other packages' autoencoders are: an affine encoder, a code, an affine decoder.

    z = x E^T + b;  c = code(z);  x^ = c D + b_d

Params: `encoder [n, d]` (E), `encoder_bias [n]` (b), `decoder [n, d]` (D), `decoder_bias [d]`
(b_d). Rows are those of the model: nothing is centred, scaled or normalised beside this.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ensemble_sae.baselines.fixed import as_sae
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.parts import affine, unit_rows
from ensemble_sae.signatures.ranking import keep_largest


class Standard:
    """c = relu(z)."""

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        """c of z: `[B, n] -> [B, n]`."""
        return torch.relu(scores)

    @classmethod
    def encode(cls, params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
        scores = affine(batch, params["encoder"], params["encoder_bias"])
        return cls.code(params, buffers, scores)

    @classmethod
    def decode(cls, params: Tensors, buffers: Tensors, code: Tensor) -> Tensor:
        return code @ params["decoder"] + params["decoder_bias"]

    @classmethod
    def dictionary(cls, params: Tensors, buffers: Tensors) -> Tensor:
        return unit_rows(params["decoder"])


class TopK(Standard):
    """c = relu(z) where z is among the k largest of its row, else 0. Buffers: `k []`."""

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        return torch.relu(keep_largest(scores, buffers["k"]))


class JumpReLU(Standard):
    """c = z where z > t, else 0, t >= 0. Params: `threshold [n]` (t)."""

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        return torch.where(scores > params["threshold"], torch.relu(scores), 0)


class Gated(Standard):
    """c = relu(z exp(r) + b_mag) where z + b_gate > 0, else 0;  z = x E^T.

    Params: `gate_bias`, `magnitude_bias`, `magnitude_scale` (r), `[n]` each; `encoder_bias` is 0.
    """

    @classmethod
    def code(cls, params: Tensors, buffers: Tensors, scores: Tensor) -> Tensor:
        size = scores * params["magnitude_scale"].exp() + params["magnitude_bias"]
        return torch.where(scores + params["gate_bias"] > 0, torch.relu(size), 0)


KINDS: dict[str, type[Standard]] = {
    "standard": Standard,
    "topk": TopK,
    "jumprelu": JumpReLU,
    "gated": Gated,
}


def kind_of(sae: Sae) -> str:
    """The name of an autoencoder's kind: one of `KINDS`."""
    return next(name for name, kind in KINDS.items() if sae.signature is kind)


def made(kind: str, params: Mapping[str, Tensor], *, k: int | None = None) -> Sae:
    """An `Sae` of a kind, float32: to be evaluated and looked at as members are.

    Args:
        k: of "topk".
    """
    ready = {name: tensor.detach().float().contiguous() for name, tensor in params.items()}
    buffers = {} if k is None else {"k": torch.tensor(float(k))}
    return as_sae(kind, KINDS[kind], ready, buffers, seed=0, options={})
