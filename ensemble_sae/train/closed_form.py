"""Closed-form gradients of the relu family: untied, tied, affine.

With z = (x - b_d) E^T + b, c = relu(z), r = c D^ + b_d - x and s = 2 / (B d), the total

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

from ensemble_sae.signatures import Affine, Tensors, Tied, Untied
from ensemble_sae.train.gradients import Gradients


@dataclass(frozen=True)
class Form:
    """Which of the family's parts a signature has."""

    tied: bool = False
    centred: bool = False
    decays_bias: bool = False


FAMILY: dict[type[Any], Form] = {
    Untied: Form(decays_bias=True),
    Tied: Form(tied=True, decays_bias=True),
    Affine: Form(centred=True),
}


class ReluFamily:
    """The gradient function of one form; holds the arrays that are reused from step to step."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, params: Tensors, buffers: Tensors, batch: Tensor) -> Gradients:
        decoder, bias = params["decoder"], params["encoder_bias"]
        members, n_dict, d = decoder.shape
        rows = batch.shape[0]
        norms = torch.linalg.vector_norm(decoder, dim=-1, keepdim=True)
        norms.masked_fill_(norms == 0, 1)  # as `parts.unit_rows`
        dictionary = torch.div(decoder, norms, out=self._array("dictionary", decoder))
        encoder = dictionary if self.form.tied else params["encoder"]
        inputs = self._inputs(params, batch, members)

        code = torch.bmm(inputs, encoder.mT, out=self._array("code", batch, members, rows, n_dict))
        code.add_(bias[:, None, :]).relu_()
        residual = torch.bmm(code, dictionary, out=self._array("residual", batch, members, rows, d))
        residual.sub_(inputs)  # x^ - x, the centre cancels
        mean_square = residual.square().mean((1, 2))
        residual.mul_(2 / (rows * d))

        d_code = torch.bmm(residual, dictionary.mT, out=self._array("d_code", code))
        d_code.add_((buffers["l1"] / rows)[:, None, None])
        torch.ops.aten.threshold_backward.grad_input(d_code, code, 0, grad_input=d_code)

        grads = self._weights(params, dictionary, norms, code, residual, d_code, inputs)
        d_bias, decay = d_code.sum(1), 0.0
        if self.form.decays_bias:
            length = torch.linalg.vector_norm(bias, dim=1)
            decay = buffers["bias_decay"] * length
            rate = torch.where(length > 0, buffers["bias_decay"] / length, 0)
            d_bias.addcmul_(bias, rate[:, None])
        grads["encoder_bias"] = d_bias
        if self.form.centred:
            through_code = torch.bmm(d_code.sum(1, keepdim=True), encoder)[:, 0]
            grads["decoder_bias"] = residual.sum(1) - through_code
        total = mean_square + buffers["l1"] * code.sum((1, 2)) / rows + decay
        l0 = torch.sign(code, out=d_code).sum((1, 2)) / rows  # d_code is spent: its room is free
        return Gradients(grads, total, {"mse": mean_square, "l0": l0})

    def _inputs(self, params: Tensors, batch: Tensor, members: int) -> Tensor:
        """What the encoder reads, `[K, B, d]`: the shared batch, minus each member's centre."""
        if not self.form.centred:
            return batch.expand(members, *batch.shape)
        out = self._array("inputs", batch, members, *batch.shape)
        return torch.sub(batch, params["decoder_bias"][:, None, :], out=out)

    def _weights(
        self,
        params: Tensors,
        dictionary: Tensor,
        norms: Tensor,
        code: Tensor,
        residual: Tensor,
        d_code: Tensor,
        inputs: Tensor,
    ) -> Tensors:
        """The gradients of D, and of E where it is not D."""
        d_decoder = torch.bmm(code.mT, residual, out=self._array("d_decoder", dictionary))
        d_encoder = torch.bmm(d_code.mT, inputs, out=self._array("d_encoder", dictionary))
        if self.form.tied:
            d_decoder.add_(d_encoder)
        along = torch.linalg.vecdot(d_decoder, dictionary).unsqueeze(-1)
        d_decoder.addcmul_(dictionary, along, value=-1).div_(norms)
        return (
            {"decoder": d_decoder}
            if self.form.tied
            else {
                "decoder": d_decoder,
                "encoder": d_encoder,
            }
        )

    def _array(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A kept array of this name and shape; its contents are whatever was there before."""
        size = shape or tuple(like.shape)
        key = (name, size, like.dtype, like.device)
        if key not in self._kept:
            self._kept[key] = like.new_empty(size)
        return self._kept[key]
