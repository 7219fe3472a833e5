"""The closed form by dense matrix products, for all members of a slice at once.

Five products of B*n*d multiply-adds and a few passes over `[B, n]`. Autograd finds the same numbers
with twice the passes, in memory that is allocated and freed at every step; on a CPU most of that
time is page faults. Here the two `[K, B, n]` arrays and the gradients are kept, and written in
place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from ensemble_sae.kernels.forms import Form, centre_of, decay_of_bias, norms_of
from ensemble_sae.kernels.gradients import Gradients
from ensemble_sae.kernels.kept import Kept
from ensemble_sae.kernels.precision import Precision, Products
from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.ranking import keep_largest
from ensemble_sae.signatures.topk import BatchTopK, moved_threshold, smallest_of


class DenseKernel:
    """The gradient function of one form; holds the arrays that are reused from step to step."""

    def __init__(self, form: Form, precision: Precision = "fp32") -> None:
        self.form = form
        self.kept = Kept()
        self.products = Products(precision, self.kept)

    def __call__(self, params: Tensors, buffers: Tensors, batch: Tensor) -> Gradients:
        kept, decoder, bias = self.kept.array, params["decoder"], params["encoder_bias"]
        members, n_dict, d = decoder.shape
        rows = batch.shape[0]
        norms = norms_of(decoder)[..., None]
        dictionary = torch.div(decoder, norms, out=kept("dictionary", decoder))
        encoder = dictionary if self.form.tied else params["encoder"]
        inputs = self._inputs(params, buffers, batch, members)
        factor, mm = self.products.factor, self.products.mm
        x, atoms = self._factor_of_inputs(inputs), factor("dictionary", dictionary)
        reads = atoms if self.form.tied else factor("encoder", encoder)

        code = mm(x, reads.mT, out=kept("code", batch, members, rows, n_dict))
        self._select(code.add_(bias[:, None, :]), buffers).relu_()
        c = factor("code", code)
        residual = mm(c, atoms, out=kept("residual", batch, members, rows, d))
        residual.sub_(inputs)  # x^ - x, the centre cancels
        mean_square = torch.linalg.vector_norm(residual, dim=2).square().sum(1) / (rows * d)
        residual.mul_(2 / (rows * d))
        l1 = buffers["l1"] if self.form.l1 else torch.zeros_like(mean_square)
        total = mean_square + l1 * (code.sum((1, 2)) / rows)
        aux = self._moved(buffers, code)

        r = factor("residual", residual)
        d_code = mm(r, atoms.mT, out=kept("d_code", code))
        d_code.add_((l1 / rows)[:, None, None])
        d_dictionary = mm(c.mT, r, out=kept("d_dictionary", dictionary))
        active = code.sign_()  # nowhere negative; the code is spent, its room is free
        d_code.mul_(active)

        d_encoder = mm(factor("d_code", d_code).mT, x, out=kept("d_encoder", dictionary))
        grads = self._weights(dictionary, norms, d_dictionary, d_encoder)
        d_bias = d_code.sum(1)
        if "centre" in params:
            through_code = torch.bmm(d_bias[:, None], encoder)[:, 0]
            grads["centre"] = residual.sum(1) - through_code
        if self.form.decays_bias:
            total += decay_of_bias(bias, buffers["bias_decay"], d_bias)
        grads["encoder_bias"] = d_bias
        fired = active.sum(1)
        aux |= {"mse": mean_square, "l0": fired.sum(1) / rows, "fired": fired}
        return Gradients(grads, total, aux)

    def _select(self, scores: Tensor, buffers: Tensors) -> Tensor:
        """Scores `[K, B, n]`, those that are not selected 0; in place."""
        if self.form.selection == "row":
            scores.copy_(vmap(keep_largest)(scores, buffers["k"]))
        elif self.form.selection == "batch":
            scores.copy_(vmap(BatchTopK.keep)(buffers["k"], scores))
        return scores

    def _moved(self, buffers: Tensors, code: Tensor) -> Tensors:
        """What a step moves besides the params."""
        if self.form.selection != "batch":
            return {}
        smallest = vmap(smallest_of)(code)
        return {"buffers/threshold": moved_threshold(buffers["threshold"], smallest)}

    def _inputs(self, params: Tensors, buffers: Tensors, batch: Tensor, members: int) -> Tensor:
        """What the encoder reads, `[K, B, d]`: the shared batch, minus each member's centre."""
        if not self.form.centred:
            return batch.expand(members, *batch.shape)
        out = self.kept.array("inputs", batch, members, *batch.shape)
        return torch.sub(batch, centre_of(params, buffers)[:, None, :], out=out)

    def _factor_of_inputs(self, inputs: Tensor) -> Tensor:
        """The inputs as a factor; a shared batch is rounded once, not once per member."""
        if self.form.centred:
            return self.products.factor("inputs", inputs)
        return self.products.factor("batch", inputs[0]).expand(inputs.shape)

    def _weights(
        self, dictionary: Tensor, norms: Tensor, d_dictionary: Tensor, d_encoder: Tensor
    ) -> Tensors:
        """The gradients of D, in the place of that of D^, and of E where it is not D^."""
        if self.form.tied:
            d_dictionary.add_(d_encoder)
        product = torch.mul(d_dictionary, dictionary, out=self.kept.array("product", dictionary))
        along = product.sum(-1, keepdim=True)
        d_decoder = d_dictionary.addcmul_(dictionary, along, value=-1).div_(norms)
        return {"decoder": d_decoder} | ({} if self.form.tied else {"encoder": d_encoder})
