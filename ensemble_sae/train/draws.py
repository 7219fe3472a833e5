"""Random numbers for losses that want some: a function of seed and step, shared by all members."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors


def draws(
    signature: type[Any], rows: int, n_dict: int, *, seed: int, step: int, like: Tensor
) -> Tensors:
    """`draw/NAME [B, n]` for every name in the signature's `DRAWS`.

    All members of a shape see the same numbers, alone or together: their comparison is paired.
    """
    made = {}
    for name, kind in getattr(signature, "DRAWS", {}).items():
        source = generator(seed, "draw", name, step)
        draw = torch.randn if kind == "normal" else torch.rand
        made[f"draw/{name}"] = draw(rows, n_dict, generator=source).to(like)
    return made
