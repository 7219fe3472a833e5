"""A member as an affine encoder, a code and an affine decoder, all in the model's own units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.interop.kinds import made
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures import frame, gated, jumprelu, masked, positive, relu, topk
from ensemble_sae.signatures.linear import LinearDictionary

TOLERANCE = 1e-4  # of the largest value: float32 against float64
TRIED = 512  # rows on which a folded member is compared with the member


def fold(sae: Sae) -> Sae:
    """The same function of the model's rows, without centring, scaling, whitening or tying.

    With z(x) the member's scores, which are affine in x, E and b are z's slope and z(0); D and b_d
    are the slope and the value at 0 of decode. Then each feature's code is rescaled so that its
    row of D has unit norm: c' = ||D_f|| c, which is the length of what it adds to the
    activations. Computed in float64, then compared with the member on rows drawn at random.

    Returns:
        An `Sae` of one of `kinds.KINDS`.

    Raises:
        UserError: this member is no such function; says why.
    """
    signature = sae.signature
    _check_foldable(sae)
    exact = _in_float64(sae)
    params, buffers, units = exact.params, exact.buffers, exact.units
    atoms = frame.dictionary(params, buffers)

    def scores(rows: Tensor) -> Tensor:
        inside = signature.enter(params, buffers, units.enter(rows))
        return signature.scores(params, buffers, inside, atoms)

    d, n = sae.config.d_activation, sae.config.n_dict
    zero = torch.zeros(1, d, dtype=torch.float64)
    bias = scores(zero)[0]
    slope = (scores(torch.eye(d, dtype=torch.float64)) - bias).mT  # [n, d]
    base = exact.decode(torch.zeros(1, n, dtype=torch.float64))[0]
    decoder = exact.decode(torch.eye(n, dtype=torch.float64)) - base
    parts = {"encoder": slope, "encoder_bias": bias, "decoder": decoder, "decoder_bias": base}
    folded = _scaled(_with_code(exact, parts), signature)
    _check_same(sae, folded)
    return folded


def _check_foldable(sae: Sae) -> None:
    signature, name = sae.signature, sae.config.signature
    if len(sae.config.widths) > 1:
        raise _refused(sae, "it reads or predicts several hook points")
    if not (isinstance(signature, type) and issubclass(signature, LinearDictionary)):
        raise _refused(sae, f"{name} has no affine encoder")
    known = (
        *(LinearDictionary.code, masked.Masked.code, topk.TopK.code, topk.BatchTopK.code),
        *(jumprelu.JumpReLU.code, gated.Gated.code),
    )
    plain = (LinearDictionary, relu.Tied, gated.Gated, positive.Positive)
    if not _one_of(signature.code, known) or not _one_of(
        signature.scores, [kind.scores for kind in plain]
    ):
        raise _refused(sae, f"{name} is no affine encoder with a relu, a top-k or a threshold")
    if signature.encode.__func__ is not LinearDictionary.encode.__func__:  # type: ignore[attr-defined]
        raise _refused(sae, f"{name} encodes in a way of its own")
    if "input_floor" in sae.buffers:
        raise _refused(sae, "input_relu cuts off its rows, which is not affine")


def _one_of(function: Any, known: Any) -> bool:
    return any(function.__func__ is other.__func__ for other in known)


def _refused(sae: Sae, why: str) -> UserError:
    return UserError(
        "This member cannot be written as an affine encoder, a code and an affine decoder.",
        where=f"member {sae.config.id}: {sae.config.name}",
        found=why,
        allowed="untied, tied, tied_centered, affine, positive, masked, lp, noise, topk, "
        "batchtopk, matryoshka, jumprelu and gated members of one hook point",
    )


def _in_float64(sae: Sae) -> Sae:
    def exact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: t.cpu().double() if t.is_floating_point() else t for k, t in tensors.items()}

    return Sae(sae.config, sae.signature, exact(sae.params), exact(sae.buffers), sae.units)


def _with_code(sae: Sae, parts: dict[str, Tensor]) -> tuple[str, dict[str, Tensor], int | None]:
    """The kind of code that a member has, its params, and k."""
    code = sae.signature.code
    if _one_of(code, [topk.BatchTopK.code]):
        threshold = sae.buffers["threshold"].clamp_min(0)
        return "jumprelu", parts | {"threshold": threshold.expand(len(parts["encoder"]))}, None
    if _one_of(code, [topk.TopK.code]):
        return "topk", parts, int(sae.buffers["k"])
    if _one_of(code, [jumprelu.JumpReLU.code]):
        return "jumprelu", parts | {"threshold": sae.params["log_threshold"].exp()}, None
    if _one_of(code, [gated.Gated.code]):
        # scores are q + b_gate, q = x E^T + q_0: what is constant in q goes into both biases.
        constant = parts["encoder_bias"] - sae.params["gate_bias"]
        scale = sae.params["magnitude_scale"]
        more = {
            "encoder_bias": torch.zeros_like(constant),
            "gate_bias": parts["encoder_bias"],
            "magnitude_scale": scale,
            "magnitude_bias": constant * scale.exp() + sae.params["magnitude_bias"],
        }
        return "gated", parts | more, None
    return "standard", parts, None


def _scaled(found: tuple[str, dict[str, Tensor], int | None], signature: type[Any]) -> Sae:
    """Rows of D made unit, their lengths moved into what comes before the code."""
    kind, params, k = found
    length = torch.linalg.vector_norm(params["decoder"], dim=1)
    length = torch.where(length > 0, length, 1.0)
    even = (length.max() - length.min()) <= 1e-9 * length.max()
    if kind == "topk" and not even:
        length = torch.ones_like(length)  # which are the largest must not change
    scaled = dict(params, decoder=params["decoder"] / length[:, None])
    for name in ("encoder_bias", "threshold", "gate_bias", "magnitude_bias"):
        if name in params:
            scaled[name] = params[name] * length
    scaled["encoder"] = params["encoder"] * length[:, None]
    return made(kind, scaled, k=k)


def _check_same(sae: Sae, folded: Sae) -> None:
    """Refuse to hand on what does not do what the member does."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(TRIED, sae.config.d_activation, generator=draw)
    rows = sae.units.leave(rows)
    own, other = sae.to("cpu")(rows), folded(rows)
    worst = float((own - other).abs().max() / own.abs().max().clamp_min(1e-30))
    if not worst < TOLERANCE:
        raise UserError(
            "The exported member does not reconstruct as the member does.",
            where=f"member {sae.config.id}: {sae.config.name}",
            found=f"a difference of {worst:.1e} of the largest value",
            allowed=f"{TOLERANCE:g}",
        )
