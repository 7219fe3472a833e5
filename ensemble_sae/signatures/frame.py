"""What may stand around any linear dictionary: the options of its rows and of its atoms.

An option is a tensor that is there or not. Nothing else tells a loss how a member was set up, so
a member that is loaded from a file needs no more than its tensors.

    input_relu    buffer input_floor []           x1 = max(x0, 0)
    centring      buffer or param centre [d]      x2 = x1 - centre
    whitening     buffers whitening, unwhitening [d, d]     x = x2 whitening
    decoder_bias  param decoder_bias [d]          y = c D^ + decoder_bias
    unit_norm     buffer projected []             D^ = D, kept at unit rows by `project`;
                                                  else D^ = D / ||D|| inside the loss

The loss of a framed member is measured on x, its reconstruction is (y unwhitening) + centre.
`centre` and `whitening` come from a sample of rows (`fit`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.signatures import parts
from ensemble_sae.signatures.protocol import Tensors

OPTIONS: dict[str, Any] = {
    "input_relu": False,
    "centring": "none",
    "whitening": False,
    "decoder_bias": False,
    "unit_norm": "loss",
}
SMALLEST = 1e-6  # of the largest eigenvalue: below it a covariance counts as singular


def add(params: Tensors, buffers: Tensors, d_activation: int, options: dict[str, Any]) -> None:
    """Put the options' tensors into a member's dicts."""
    if options["input_relu"]:
        buffers["input_floor"] = torch.zeros(())
    if options["centring"] != "none":
        holder = params if options["centring"] == "learned" else buffers
        holder["centre"] = torch.zeros(d_activation)
    if options["whitening"]:
        buffers["whitening"] = torch.eye(d_activation)
        buffers["unwhitening"] = torch.eye(d_activation)
    if options["decoder_bias"]:
        params["decoder_bias"] = torch.zeros(d_activation)
    if options["unit_norm"] == "project":
        buffers["projected"] = torch.ones(())


def target(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
    """x1, the rows that a reconstruction is compared with: `[B, d]`."""
    return batch.clamp_min(0) if "input_floor" in buffers else batch


def enter(params: Tensors, buffers: Tensors, batch: Tensor) -> Tensor:
    """x0 -> x: `[B, d] -> [B, d]`."""
    centre = params.get("centre", buffers.get("centre"))
    rows = target(params, buffers, batch)
    rows = rows if centre is None else rows - centre
    return rows @ buffers["whitening"] if "whitening" in buffers else rows


def leave(params: Tensors, buffers: Tensors, rows: Tensor) -> Tensor:
    """y -> x^: `[B, d] -> [B, d]`."""
    centre = params.get("centre", buffers.get("centre"))
    rows = rows @ buffers["unwhitening"] if "unwhitening" in buffers else rows
    return rows if centre is None else rows + centre


def dictionary(params: Tensors, buffers: Tensors) -> Tensor:
    """D^ as the loss uses it, `[n, d]`."""
    decoder = params["decoder"]
    return decoder if "projected" in buffers else parts.unit_rows(decoder)


def combine(params: Tensors, code: Tensor, atoms: Tensor) -> Tensor:
    """y = c D^ + decoder_bias: `[B, n], [n, d] -> [B, d]`."""
    rows = code @ atoms
    return rows + params["decoder_bias"] if "decoder_bias" in params else rows


def project(params: Tensors, buffers: Tensors) -> Tensors:
    """Unit rows again, where a projection keeps them and not the loss."""
    if "projected" not in buffers:
        return params
    return {**params, "decoder": parts.unit_rows(params["decoder"])}


def mean_squared_error(
    params: Tensors, buffers: Tensors, rows: Tensor, batch: Tensor, error: Tensor
) -> Tensor:
    """The error in the units of the batch, of y `rows` whose error on x is `error` []."""
    if "whitening" not in buffers:
        return error.detach()
    back = leave(params, buffers, rows.detach())
    return parts.mean_squared_error(back, target(params, buffers, batch)).detach()


def fit(params: Tensors, buffers: Tensors, rows: Tensor) -> tuple[Tensors, Tensors]:
    """Take the centre and the whitening from a sample of rows `[S, d]`, in float64.

    Whitening is ZCA: C^(-1/2), C the sample's covariance. Whatever rotation would do, but this
    one leaves every direction as near to itself as possible (Kessy et al. 2018, section 3.1).

    Raises:
        UserError: whitening with a singular covariance.
    """
    exact = target(params, buffers, rows.double())
    mean, params, buffers = exact.mean(0), dict(params), dict(buffers)
    for holder in (params, buffers):
        if "centre" in holder:
            holder["centre"] = mean.to(holder["centre"])
    if "whitening" in buffers:
        whitening, unwhitening = _zca(exact - mean)
        buffers["whitening"] = whitening.to(buffers["whitening"])
        buffers["unwhitening"] = unwhitening.to(buffers["unwhitening"])
    return params, buffers


def _zca(rows: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(rows.mT @ rows / rows.shape[0])
    if not values[0] > SMALLEST * values[-1]:
        raise UserError(
            "The rows cannot be whitened: their covariance is singular.",
            where="whitening = true",
            found=f"eigenvalues from {values[0]:.3g} to {values[-1]:.3g} "
            f"in a sample of {rows.shape[0]:,} rows of width {rows.shape[1]:,}",
            allowed=f"a smallest one above {SMALLEST:g} of the largest",
            next_step="whitening = false, or a store of more rows or fewer constant dimensions",
        )
    root = values.sqrt()
    return (vectors / root) @ vectors.mT, (vectors * root) @ vectors.mT
