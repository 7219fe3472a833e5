"""Which way to the gradient: the mapped one, or a closed form where the signature has one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from ensemble_sae.train import closed_form
from ensemble_sae.train.gradients import GradientFunction, mapped

Kernel = Literal["auto", "generic"]


def gradient_function(
    signature: type[Any], kernel: Kernel, tensors: Collection[str]
) -> GradientFunction:
    """The fastest exact gradient that there is for a signature.

    Args:
        kernel: `generic` forces the mapped path; `auto` takes a closed form where there is one.
        tensors: names of the members' params and buffers: those of an option that the closed form
            does not know lead to the mapped path too.
    """
    form = closed_form.FAMILY.get(signature)
    if kernel == "auto" and form is not None and set(tensors) == form.tensors:
        return closed_form.ReluFamily(form)
    return mapped(signature)
