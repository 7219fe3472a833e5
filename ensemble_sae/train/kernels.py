"""Which way to the gradient: the mapped one, or a closed form where the signature has one."""

from __future__ import annotations

from typing import Any, Literal

from ensemble_sae.train import closed_form
from ensemble_sae.train.gradients import GradientFunction, mapped

Kernel = Literal["auto", "generic"]


def gradient_function(signature: type[Any], kernel: Kernel = "auto") -> GradientFunction:
    """The fastest exact gradient that there is for a signature.

    Args:
        kernel: `generic` forces the mapped path; `auto` takes a closed form where there is one.
    """
    if kernel == "auto" and signature in closed_form.FAMILY:
        return closed_form.ReluFamily(closed_form.FAMILY[signature])
    return mapped(signature)
