"""The precision of matrix products. Parameters, moments, codes and sums stay what they are.

    fp32    products of float32 numbers (of float64 ones in float64)
    tf32    CUDA: factors are rounded to 10 bits of fraction inside the tensor cores
    bf16    factors are rounded to bfloat16, 8 bits of fraction, and products summed in float32

So updates that are smaller than a rounded parameter's last bit are not lost: what is rounded is
what enters a product, at every step anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.kernels.kept import Kept

Precision = Literal["fp32", "tf32", "bf16"]


def refuse_unknown(precision: str, kind: str) -> None:
    """Raise a UserError if devices of this kind do not have the precision."""
    if precision not in get_args(Precision):
        raise UserError(
            "No such precision.",
            where="precision",
            found=repr(precision),
            allowed=", ".join(get_args(Precision)),
        )
    if precision == "tf32" and kind != "cuda":
        raise UserError(
            "tf32 is a format of CUDA devices.",
            where="precision",
            found=f"tf32 on {kind}",
            allowed="fp32 or bf16",
            next_step="--precision fp32",
        )


@contextmanager
def products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Products of PyTorch's own operators, autograd's too, are taken like this inside."""
    if precision == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
        return
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    wanted = precision == "tf32"
    if wanted != before:
        matmul.allow_tf32 = wanted
    try:
        yield
    finally:
        if wanted != before:
            matmul.allow_tf32 = before


class Products:
    """Products of what is given, into arrays that are there: for kernels without autograd.

    A factor is rounded once, however many products it enters.
    """

    def __init__(self, precision: Precision, kept: Kept) -> None:
        self._rounds, self._kept = precision == "bf16", kept

    def factor(self, name: str, tensor: Tensor) -> Tensor:
        """What enters the products for a tensor: itself, or a rounded copy of this name."""
        if not self._rounds:
            return tensor
        return self._kept.array(f"rounded {name}", tensor, dtype=torch.bfloat16).copy_(tensor)

    def mm(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        """`out = left @ right` of two factors, `[K, ., .]` or `[., .]`."""
        multiply = torch.bmm if left.dim() == 3 else torch.mm  # matmul would copy a shared factor
        if not self._rounds:
            return multiply(left, right, out=out)
        if left.is_cuda:  # the sum is not rounded on its way out
            return out.copy_(multiply(left, right, out_dtype=out.dtype))
        return out.copy_(multiply(left, right))
