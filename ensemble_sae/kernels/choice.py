"""Which way to the gradient, for each member: mapped, dense, sparse."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor

from ensemble_sae.kernels.dense import DenseKernel
from ensemble_sae.kernels.forms import Form, form_of
from ensemble_sae.kernels.gradients import GradientFunction, mapped
from ensemble_sae.kernels.precision import Precision, refuse_unknown
from ensemble_sae.kernels.sparse import SparseKernel
from ensemble_sae.signatures import Tensors

Kernel = Literal["auto", "generic", "dense", "sparse"]

# Shares of a dictionary that are active in a row: somewhat below where both kernels take as long.
# Two numbers, so that a member in between does not go back and forth.
BELOW, ABOVE = 0.15, 0.19
EVERY = 10  # steps between looks


class Kernels:
    """The gradient functions of the members of an ensemble, and who takes the sparse one.

    `generic` is autograd under vmap and fits every signature; `dense` and `sparse` are closed forms
    of some. `auto` takes the dense one, and the sparse one for members with few active features;
    the generic one where there is none.

    Args:
        tensors: names of the members' params and buffers: those of an option that the closed form
            does not know lead to the mapped path too.
    """

    def __init__(
        self,
        signature: type[Any],
        kernel: Kernel,
        params: Tensors,
        buffers: Tensors,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        refuse_unknown(precision, device.type)
        form = None if kernel == "generic" else form_of(signature, {*params, *buffers})
        self.dense = mapped(signature, precision) if form is None else DenseKernel(form, precision)
        self.sparse = _sparse(form, kernel, device, precision)
        self._moves = kernel == "auto" and self.sparse is not None
        members = next(iter(params.values())).shape[0]
        self.is_sparse = torch.full((members,), kernel == "sparse" and self.sparse is not None)
        self._n_dict = params["decoder"].shape[1] if form is not None else 1
        self._l0 = torch.full((members,), float("nan"))
        if self._moves and form is not None and form.selection != "all":
            self.is_sparse |= buffers["k"].cpu() <= BELOW * self._n_dict

    def of(self, sparse: bool) -> GradientFunction:
        """The function for members that are sparse, or not."""
        return self.sparse if sparse and self.sparse is not None else self.dense

    def restore(self, is_sparse: Tensor) -> None:
        """Who takes the sparse kernel, `[K]`; nobody where there is none any more."""
        self.is_sparse.copy_(is_sparse)
        if self.sparse is None:
            self.is_sparse.zero_()

    def observe(self, start: int, stop: int, aux: Tensors, alive: Tensor | None) -> None:
        """Take note of how many features members `start..stop` used; of those that still move."""
        if self._moves:
            l0 = aux["l0"].to(self._l0)
            self._l0[start:stop] = l0 if alive is None else torch.where(alive, l0, torch.nan)

    def look(self, step: int) -> bool:
        """Whether some member is to change over after this step; `is_sparse` says who is what."""
        if not self._moves or step % EVERY:
            return False
        share, before = self._l0 / self._n_dict, self.is_sparse.clone()
        self.is_sparse[share <= BELOW] = True
        self.is_sparse[share >= ABOVE] = False
        if torch.equal(before, self.is_sparse):
            return False
        for kernel in (self.dense, self.sparse):  # slices will have other widths
            if isinstance(kernel, DenseKernel | SparseKernel):
                kernel.kept.clear()
        return True


def _sparse(
    form: Form | None, kernel: Kernel, device: torch.device, precision: Precision
) -> SparseKernel | None:
    if form is None or kernel == "dense":
        return None
    if device.type == "cpu":
        return SparseKernel(form, loops, precision)
    # Nothing is measured on a GPU yet: only who asks for it gets it.
    if kernel == "sparse" and device.type == "cuda" and importlib.util.find_spec("triton"):
        return SparseKernel(form, loops_of_gpu, precision)
    return None


def loops() -> Any:
    """The loops of a CPU's sparse step: compiled by numba, or plain PyTorch where it is missing."""
    if importlib.util.find_spec("numba") is None:
        from ensemble_sae.kernels import plain

        return plain
    from ensemble_sae.kernels import compiled  # imports numba: only where it is used

    return compiled


def loops_of_gpu() -> Any:
    """The loops of a GPU's sparse step: Triton's."""
    from ensemble_sae.kernels import gpu  # imports triton: only where it is used

    return gpu
