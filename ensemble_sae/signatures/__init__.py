"""The table of signatures: name -> class. `resolve` is the one way to look a name up."""

from __future__ import annotations

import importlib
from typing import Any

from ensemble_sae.errors import UserError, nearest
from ensemble_sae.signatures.gated import Gated
from ensemble_sae.signatures.ista import Fista, Lista
from ensemble_sae.signatures.jumprelu import JumpReLU
from ensemble_sae.signatures.lp import Lp
from ensemble_sae.signatures.masked import Masked
from ensemble_sae.signatures.matryoshka import Matryoshka
from ensemble_sae.signatures.noise import Noise
from ensemble_sae.signatures.pairs import Crosscoder, Transcoder
from ensemble_sae.signatures.positive import Positive
from ensemble_sae.signatures.protocol import Complete, Loss, Signature, Tensors, hyperparameters
from ensemble_sae.signatures.relu import Affine, Tied, TiedCentered, Untied
from ensemble_sae.signatures.rica import Rica
from ensemble_sae.signatures.semilinear import Semilinear
from ensemble_sae.signatures.spike_slab import SpikeSlabVae
from ensemble_sae.signatures.thresholding import Thresholding
from ensemble_sae.signatures.topk import BatchTopK, TopK

BUILTIN: dict[str, type[Any]] = {
    "untied": Untied,
    "tied": Tied,
    "tied_centered": TiedCentered,
    "affine": Affine,
    "positive": Positive,
    "masked": Masked,
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "thresholding": Thresholding,
    "lp": Lp,
    "noise": Noise,
    "semilinear": Semilinear,
    "rica": Rica,
    "fista": Fista,
    "lista": Lista,
    "spike_slab_vae": SpikeSlabVae,
    "transcoder": Transcoder,
    "crosscoder": Crosscoder,
}

__all__ = [
    "BUILTIN",
    "Complete",
    "Loss",
    "Signature",
    "Tensors",
    "hyperparameters",
    "name_of",
    "resolve",
]


def name_of(signature: type[Any]) -> str:
    """The name that `resolve` understands: a built-in one, or `module:Class`."""
    for name, known in BUILTIN.items():
        if known is signature:
            return name
    return f"{signature.__module__}:{signature.__qualname__}"


def resolve(name: str) -> type[Any]:
    """The signature of a built-in name, or of your own class as `module:Class`.

    Raises:
        UserError: unknown name (lists the known ones), a module that does not import, or a
            class without `init` and `loss`.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    if ":" not in name:
        raise UserError(
            "Unknown signature.",
            found=repr(name),
            allowed=f"{nearest(name, BUILTIN)}, or your own class as 'module:Class'",
        )
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # your module may raise anything while it is imported
        raise UserError(
            "A signature of your own cannot be imported.",
            found=f"{name!r}: {error}",
            next_step="run from the folder that holds the module, or put it on PYTHONPATH",
        ) from None
    missing = [part for part in ("init", "loss") if not callable(getattr(found, part, None))]
    if missing:
        raise UserError(
            f"{name!r} is no signature: it lacks {' and '.join(missing)}.",
            next_step="give it static functions init(...) and loss(...): docs/own_signature.md",
        )
    return found
