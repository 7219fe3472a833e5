"""Closed-form gradients of the relu family: untied, tied, tied_centered, affine.

With z = (x - b_d) E^T + b, c = relu(z), r = c D^ + b_d - x, where b_d is a centre (learned, or
a buffer that stays), and s = 2 / (B d), the total

    mean r^2 + l1 / B * sum c + bias_decay * ||b||

has the gradients

    dc  = (s r D^^T + l1 / B) * [c > 0]       dE   = dc^T (x - b_d)
    dD^ = s c^T r                             dD   = (dD^ - (dD^ . D^) D^) / ||D||
    db  = sum_B dc + bias_decay * b / ||b||   db_d = s sum_B r - sum_B dc E

which are five products of B*n*d multiply-adds and a few passes over `[B, n]`. Tied members add dE
to dD^ before the last step. Autograd finds the same numbers with twice the passes, in memory that
is allocated and freed at every step; on a CPU most of that time is page faults. Here the two
`[K, B, n]` arrays and the gradients are kept and written in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.relu import Affine, Tied, TiedCentered, Untied
from ensemble_sae.train.gradients import Gradients
from ensemble_sae.train.kept import Kept


@dataclass(frozen=True)
class Form:
    """Which of the family's parts a signature has."""

    tied: bool = False
    centred: bool = False
    decays_bias: bool = False

    @property
    def tensors(self) -> set[str]:
        """Names of the params and buffers that this form knows."""
        known = {"decoder", "encoder_bias", "l1"}
        options = {
            "encoder": not self.tied,
            "centre": self.centred,
            "bias_decay": self.decays_bias,
        }
        return known | {name for name, there in options.items() if there}


FAMILY: dict[type[Any], Form] = {
    Untied: Form(decays_bias=True),
    Tied: Form(tied=True, decays_bias=True),
    TiedCentered: Form(tied=True, centred=True, decays_bias=True),
    Affine: Form(centred=True),
}


class ReluFamily:
    """The gradient function of one form; holds the arrays that are reused from step to step."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._kept = Kept().array

    def __call__(self, params: Tensors, buffers: Tensors, batch: Tensor) -> Gradients:
        kept, decoder, bias = self._kept, params["decoder"], params["encoder_bias"]
        members, n_dict, d = decoder.shape
        rows = batch.shape[0]
        norms = torch.linalg.vector_norm(decoder, dim=-1, keepdim=True)
        norms.masked_fill_(norms == 0, 1)  # as `parts.unit_rows`
        dictionary = torch.div(decoder, norms, out=kept("dictionary", decoder))
        encoder = dictionary if self.form.tied else params["encoder"]
        inputs = self._inputs(params, buffers, batch, members)

        code = torch.bmm(inputs, encoder.mT, out=kept("code", batch, members, rows, n_dict))
        code.add_(bias[:, None, :]).relu_()
        residual = torch.bmm(code, dictionary, out=kept("residual", batch, members, rows, d))
        residual.sub_(inputs)  # x^ - x, the centre cancels
        mean_square = torch.linalg.vector_norm(residual, dim=2).square().sum(1) / (rows * d)
        residual.mul_(2 / (rows * d))
        mean_l1 = code.sum((1, 2)) / rows

        d_code = torch.bmm(residual, dictionary.mT, out=kept("d_code", code))
        d_code.add_((buffers["l1"] / rows)[:, None, None])
        d_dictionary = torch.bmm(code.mT, residual, out=kept("d_dictionary", dictionary))
        active = code.sign_()  # nowhere negative; the code is spent, its room is free
        d_code.mul_(active)

        grads = self._weights(dictionary, norms, d_dictionary, d_code, inputs)
        d_bias, decay = d_code.sum(1), 0.0
        if self.form.decays_bias:
            length = torch.linalg.vector_norm(bias, dim=1)
            decay = buffers["bias_decay"] * length
            rate = torch.where(length > 0, buffers["bias_decay"] / length, 0)
            d_bias.addcmul_(bias, rate[:, None])
        grads["encoder_bias"] = d_bias
        if "centre" in params:
            through_code = torch.bmm(d_code.sum(1, keepdim=True), encoder)[:, 0]
            grads["centre"] = residual.sum(1) - through_code
        total = mean_square + buffers["l1"] * mean_l1 + decay
        fired = active.sum(1)
        aux = {"mse": mean_square, "l0": fired.sum(1) / rows, "fired": fired}
        return Gradients(grads, total, aux)

    def _inputs(self, params: Tensors, buffers: Tensors, batch: Tensor, members: int) -> Tensor:
        """What the encoder reads, `[K, B, d]`: the shared batch, minus each member's centre."""
        if not self.form.centred:
            return batch.expand(members, *batch.shape)
        centre = params["centre"] if "centre" in params else buffers["centre"]
        out = self._kept("inputs", batch, members, *batch.shape)
        return torch.sub(batch, centre[:, None, :], out=out)

    def _weights(
        self,
        dictionary: Tensor,
        norms: Tensor,
        d_dictionary: Tensor,
        d_code: Tensor,
        inputs: Tensor,
    ) -> Tensors:
        """The gradients of D, in the place of that of D^, and of E where it is not D^."""
        d_encoder = torch.bmm(d_code.mT, inputs, out=self._kept("d_encoder", dictionary))
        if self.form.tied:
            d_dictionary.add_(d_encoder)
        product = torch.mul(d_dictionary, dictionary, out=self._kept("product", dictionary))
        along = product.sum(-1, keepdim=True)
        d_decoder = d_dictionary.addcmul_(dictionary, along, value=-1).div_(norms)
        return {"decoder": d_decoder} | ({} if self.form.tied else {"encoder": d_encoder})
