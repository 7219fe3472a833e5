"""Where a feature writes: the directions that an SAE adds to a model's activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ensemble_sae.data.hooks import Hook
from ensemble_sae.errors import UserError
from ensemble_sae.run.sae import Sae

_BLOCK_VALUES = 1 << 24  # of the codes that are decoded together


def hook_points(sae: Sae) -> tuple[str, str]:
    """The hook point that an SAE reads and the one that it writes: the same without a target.

    Raises:
        UserError: several points side by side, or rows that are of no hook.
    """
    where = f"member {sae.config.id}"
    if not sae.config.hook:
        raise UserError("This SAE was trained on rows that belong to no hook.", where=where)
    hook = Hook.parse(sae.config.hook, where)
    if len(hook.inputs) > 1 or len(hook.targets) > 1:
        raise UserError(
            "This SAE reads or writes several hook points side by side.",
            where=where,
            found=hook.name,
            allowed="one point that is read and one that is written: A, or A -> B",
        )
    return hook.inputs[0], hook.measured[0]


def directions(sae: Sae, features: Sequence[int] | None = None) -> Tensor:
    """What one unit of each feature's code adds to the activations: v_f = decode(e_f) - decode(0).

    Decoding is affine in the code, so decode(c) = decode(0) + sum_f c_f v_f for every code c.
    Unlike `sae.dictionary` the rows are in the units of the model's activations, not unit rows.
    Computed in float64, since decode(0) may be much longer than a direction. Of a few features
    the codes e_f are decoded; of all of them, v is the derivative of decode at 0, taken one block
    of the d outputs at a time, which costs n d^2 instead of n^2 d.

    Args:
        features: which ones; all if None.

    Returns:
        `[n, d]`, d the width of the hook that is written, in the dtype of the parameters.
    """
    exact, dtype = _in_float64(sae), next(iter(sae.params.values())).dtype
    return (_derivative(exact) if features is None else _decoded(exact, features)).to(dtype)


@torch.no_grad()
def _decoded(sae: Sae, features: Sequence[int]) -> Tensor:
    """decode(e_f) - decode(0) `[len(features), d]`."""
    n = sae.config.n_dict
    zero = sae.decode(torch.zeros(1, n, dtype=torch.float64, device=sae.device))
    found = zero.new_empty(len(features), zero.shape[1])
    chosen = torch.tensor(features, dtype=torch.long, device=sae.device)
    size = max(1, _BLOCK_VALUES // n)
    for start in range(0, len(features), size):
        block = chosen[start : start + size]
        codes = zero.new_zeros(len(block), n).scatter_(1, block[:, None], 1.0)
        found[start : start + size] = sae.decode(codes) - zero
    return found


@torch.enable_grad()
def _derivative(sae: Sae) -> Tensor:
    """The derivative of decode at 0 `[n_dict, d]`: a row of zeros per output, pulled back."""
    n, d = sae.config.n_dict, sae.config.d_target or sae.config.d_activation
    found = torch.empty(n, d, dtype=torch.float64, device=sae.device)
    for outputs in torch.arange(d, device=sae.device).split(max(1, _BLOCK_VALUES // n)):
        codes = torch.zeros(
            len(outputs), n, dtype=torch.float64, device=sae.device, requires_grad=True
        )
        rows = sae.target_units.leave(sae.signature.decode(sae.params, sae.buffers, codes))
        picked = rows.gather(1, outputs[:, None]).sum()
        found[:, outputs] = torch.autograd.grad(picked, codes)[0].T
    return found


def _in_float64(sae: Sae) -> Sae:
    params, buffers = (
        {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
        for tensors in (sae.params, sae.buffers)
    )
    return Sae(sae.config, sae.signature, params, buffers, sae.units, sae.target_units)
