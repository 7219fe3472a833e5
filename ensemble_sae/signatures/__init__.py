"""The table of signatures: name -> class. `resolve` is the one way to look a name up."""

from __future__ import annotations

import importlib
from typing import Any

from ensemble_sae.errors import UserError, nearest
from ensemble_sae.signatures.affine import Affine
from ensemble_sae.signatures.protocol import Complete, Loss, Signature, Tensors, hyperparameters
from ensemble_sae.signatures.tied import Tied
from ensemble_sae.signatures.untied import Untied

BUILTIN: dict[str, type[Any]] = {"untied": Untied, "tied": Tied, "affine": Affine}

__all__ = [
    "BUILTIN",
    "Affine",
    "Complete",
    "Loss",
    "Signature",
    "Tensors",
    "Tied",
    "Untied",
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
