"""Closed forms give the numbers of the mapped gradient, and are taken where they are known to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from making import close, members, rows

from ensemble_sae.signatures import BUILTIN, Tensors, name_of
from ensemble_sae.train import closed_form, stacking
from ensemble_sae.train.kernels import gradient_function

SHAPES = {  # members, d, n, batch
    "odd": (3, 5, 7, 11),
    "one member": (1, 6, 10, 4),
    "one row": (4, 3, 5, 1),
    "one feature": (2, 4, 1, 6),
    "wide": (2, 3, 65, 9),
    "narrow": (5, 33, 4, 2),
}
PRECISION = {torch.float64: 1e-10, torch.float32: 1e-5}


WAYS = [  # every way to set up a member that a closed form knows
    pytest.param(signature, options, id=f"{name_of(signature)} {' '.join(options.values())}")
    for signature, form in closed_form.FAMILY.items()
    for options in ([{"centring": "learned"}, {"centring": "mean"}] if form.centred else [{}])
]
OPTIONS = [
    {"input_relu": True},
    {"whitening": True},
    {"decoder_bias": True},
    {"unit_norm": "project"},
    {"revive": "aux_k"},
    {"revive": "pre_act"},
]


@pytest.mark.parametrize(("signature", "options"), WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_closed_form_is_the_mapped_gradient(
    signature: type, options: dict[str, Any], shape: str, dtype: torch.dtype
) -> None:
    count, d, n, batch = SHAPES[shape]
    params, buffers = stacked(signature, count, d, n, dtype=dtype, **options)
    buffers["l1"] = 0.02 * torch.arange(count, dtype=dtype)
    if n > 2:
        params["encoder_bias"][:, 0] = -50.0  # dead
        params["encoder_bias"][:, 1] = 50.0  # dense
        params["decoder"][0, 2] = 0.0
    if count > 2:
        params["encoder_bias"][2] = 0.0
    names = {*params, *buffers}
    fast, plain = (gradient_function(signature, kernel, names) for kernel in ("auto", "generic"))
    assert isinstance(fast, closed_form.ReluFamily)
    for seed in range(2):  # the arrays that are kept between calls carry nothing over
        x = rows(batch, d, seed=seed, dtype=dtype)
        found, expected = fast(params, buffers, x), plain(params, buffers, x)
        close(found.params, expected.params, PRECISION[dtype])
        close(
            {"total": found.total, **found.aux},
            {"total": expected.total, **expected.aux},
            PRECISION[dtype],
        )


@pytest.mark.parametrize(("signature", "options"), WAYS)
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_an_option_that_the_closed_form_does_not_know_is_mapped(
    signature: type, options: dict[str, Any], option: dict[str, Any]
) -> None:
    params, buffers = stacked(signature, 2, 5, 7, **options, **option)
    found = gradient_function(signature, "auto", {*params, *buffers})
    assert not isinstance(found, closed_form.ReluFamily)


def test_a_missing_tensor_is_mapped_too() -> None:
    affine = BUILTIN["affine"]
    params, buffers = stacked(affine, 2, 5, 7, centring="none")
    found = gradient_function(affine, "auto", {*params, *buffers})
    assert not isinstance(found, closed_form.ReluFamily)


def stacked(signature: type, count: int, d: int, n: int, **options: Any) -> tuple[Tensors, Tensors]:
    pairs = members(name_of(signature), count, d, n, **options)
    params, buffers = (stacking.stack(part) for part in zip(*pairs, strict=True))
    return params, buffers


def test_member_norms_see_what_is_not_finite() -> None:
    stacked = {"w": torch.ones(3, 2, 4), "b": torch.ones(3, 1), "s": torch.zeros(3)}
    stacked["s"][1], stacked["w"][2, 0, 0] = math.nan, math.inf
    norms = stacking.member_norms(stacked)
    assert float(norms[0]) == 3.0
    assert norms.isfinite().tolist() == [True, False, False]
