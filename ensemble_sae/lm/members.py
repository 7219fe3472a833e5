"""An autoencoder at the hook points of a language model: what it reads there, what it puts there.

Of a hook "A" or "A + B" the rows themselves are replaced by their reconstruction, of "A -> B" those
of B by what is predicted from A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ensemble_sae.data.hooks import Hook
from ensemble_sae.errors import UserError
from ensemble_sae.lm.harvest_model import hook_widths
from ensemble_sae.run.sae import Sae

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


_READ_ONLY = ("hook_resid_mid", "ln1.hook_in", "ln2.hook_in")  # of a branch off the stream


def joined(points: tuple[str, ...], values: Mapping[str, Tensor]) -> Tensor:
    """The values of hook points `[..., d]` side by side."""
    return values[points[0]] if len(points) == 1 else torch.cat([values[p] for p in points], -1)


def apart(points: tuple[str, ...], rows: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joined rows as those of each hook point, as wide as its values and of their dtype."""
    widths = [values[point].shape[-1] for point in points]
    parts = zip(points, rows.split(widths, -1), strict=True)
    return {point: part.to(values[point].dtype) for point, part in parts}


def check_fits(bridge: TransformerBridge, sae: Sae, hook: str | None = None) -> Hook:
    """The hook of an autoencoder in a model, one that is there and as wide as the autoencoder.

    Args:
        hook: for an autoencoder that names none, such as a baseline; before its own if given.

    Raises:
        UserError: no hook, an unknown one (the closest are listed), or one of another width than
            the autoencoder (both are named).
    """
    name = hook or sae.config.hook
    if not name:
        raise UserError(
            "At which hook is this autoencoder?", where=repr(sae), next_step="give hook=..."
        )
    parsed = Hook.parse(name)
    for point in parsed.measured:
        if point.endswith(_READ_ONLY):
            raise UserError(
                "What is put at this hook point would change what the MLP reads, and not the "
                "residual stream beside it.",
                where=point,
                next_step="use a member at hook_attn_out, hook_resid_pre or hook_resid_post",
            )
    widths = hook_widths(bridge, list(dict.fromkeys(parsed.points)))
    width = sum(widths[point] for point in parsed.inputs)
    if width != sae.config.d_activation:
        raise UserError(
            "This autoencoder has another width than the hook.",
            where=f"{sae!r} at {parsed.name}",
            found=f"d_activation {sae.config.d_activation}",
            allowed=f"{width}, the width of the hook in this model",
            next_step="give the model and the hook that its rows came from",
        )
    return parsed
