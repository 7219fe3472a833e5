"""Cross-entropy through the unembedding, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class HeadLoss(torch.autograd.Function):
    """`mean_i -log softmax(x_i W^T)[t_i]`, gradients included, a block of rows at a time.

    With 4,096 tokens and as many vocabulary entries the logits are 64 MB; a block of them stays in
    the processor's cache, and its gradient is formed in place as soon as its loss is known.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, rows: int = 256) -> Tensor:
        """Return the mean loss in nats, a scalar.

        Args:
            x: final hidden states, `[N, d]`.
            weight: the unembedding, `[vocabulary, d]`.
            targets: `[N]`, the token that follows each row.
            rows: block size.
        """
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        total = x.new_zeros(())
        for start in range(0, len(x), rows):
            block, target = x[start : start + rows], targets[start : start + rows, None]
            logits = block @ weight.T
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, target)).sum()
            # The gradient of the block's loss in its logits: softmax - one_hot(target).
            grad = logits.sub_(norm).exp_()
            grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            torch.mm(grad, weight, out=grad_x[start : start + rows])
            grad_weight.addmm_(grad.T, block)
        ctx.save_for_backward(grad_x.div_(len(x)), grad_weight.div_(len(x)))
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the gradients that the forward pass left."""
        grad_x, grad_weight = ctx.saved_tensors
        return grads[0] * grad_x, grads[0] * grad_weight, None, None
