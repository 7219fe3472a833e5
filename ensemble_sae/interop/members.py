"""Dictionaries of others as members of a run are: with the built-in signatures."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ensemble_sae.interop.folding import fold
from ensemble_sae.interop.kinds import KINDS, kind_of
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.signatures.frame import OPTIONS

SIGNATURES = {"standard": "untied", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
OWN = {"centring": "none", "decoder_bias": True, "unit_norm": "project"}


def as_member(sae: Sae) -> Sae:
    """The same function, by a built-in signature: what `run.sae` can load without being told more.

    A decoder whose rows may have any length is that of `unit_norm = "project"` before a
    projection, which only training makes. What else the signature has is left out or "none". A
    threshold t is kept as its logarithm: t is the same to a float32's rounding, and 0 as -inf.

    Args:
        sae: of one of `kinds.KINDS`, or what `fold` can make one of.

    Raises:
        UserError: it is no affine encoder, code and affine decoder; says why.
    """
    if sae.signature not in KINDS.values():
        sae = replaced(fold(sae), like=sae)
    kind, params, buffers = kind_of(sae), dict(sae.params), dict(sae.buffers)
    if kind == "jumprelu":
        params["log_threshold"] = params.pop("threshold").clamp_min(0).log()
    if kind == "gated":
        params |= _gates(params)
        del params["encoder_bias"]
    known = {"k": float(buffers["k"])} if kind == "topk" else {}
    buffers = {name: buffers[name] for name in known} | {"projected": torch.ones(())}
    options = OPTIONS | OWN
    config = replace(
        sae.config,
        signature=SIGNATURES[kind],
        hyperparameters=known | options | sae.config.hyperparameters,
    )
    return Sae(config, BUILTIN[SIGNATURES[kind]], params, buffers, sae.units)


def replaced(folded: Sae, like: Sae) -> Sae:
    """A folded autoencoder under the name and the hook of the one that it was."""
    config = replace(folded.config, name=like.config.name, hook=like.config.hook)
    return Sae(config, folded.signature, folded.params, folded.buffers, folded.units)


def _gates(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases of scores without one of their own: `encoder_bias` e goes into both paths."""
    bias, scale = params["encoder_bias"], params["magnitude_scale"].exp()
    return {
        "gate_bias": params["gate_bias"] + bias,
        "magnitude_bias": params["magnitude_bias"] + bias * scale,
    }
