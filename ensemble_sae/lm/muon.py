"""Muon in float32, for machines without fast bfloat16.

`torch.optim.Muon` orthogonalises in bfloat16, one matrix at a time; on a CPU that emulates
bfloat16 this takes twice as long as the forward and backward pass together. Here matrices of one
shape are stacked and the Newton-Schulz iteration runs on the stack in their own dtype.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Keller Jordan's quintic (kellerjordan.github.io/posts/muon): steepest at zero, so that small
# singular values grow fast; all end between about 0.7 and 1.2, which is near enough to 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Set the singular values of each matrix of the stack `[s, m, n]` to about 1."""
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    x = wide / wide.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x if wide is stack else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for matrices `[m, n]`.

    `M <- mu M + (1 - mu) G`; `W <- (1 - lr wd) W - 0.2 sqrt(max(m, n)) lr O(mu M + (1 - mu) G)`,
    with `O` as in `orthogonalise`. The factor gives the update the size of an AdamW step, so that
    one learning rate serves both. As `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        """Take the matrices and the numbers that the formula names."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for same in shapes.values():
                self._step_same(same, group["lr"], group["momentum"], group["weight_decay"])

    def _step_same(
        self, params: list[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        """Update parameters of one shape together."""
        updates = []
        for parameter in params:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            updates.append(gradient.lerp(state["momentum"].lerp_(gradient, 1 - momentum), momentum))
        size = 0.2 * max(params[0].shape) ** 0.5
        for parameter, direction in zip(params, orthogonalise(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * weight_decay).sub_(direction, alpha=lr * size)
