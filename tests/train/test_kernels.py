"""Closed forms and fused operators give the numbers of the plain ones."""

from __future__ import annotations

import math

import pytest
import torch
import torchopt
from making import close, members, rows
from reference import CASES
from reference import Adam as ReferenceAdam
from torch.testing import assert_close

from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import closed_form, optimiser, schedules, stacking
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


@pytest.mark.parametrize("name", closed_form.FAMILY, ids=lambda s: s.__name__)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_closed_form_is_the_mapped_gradient(name: type, shape: str, dtype: torch.dtype) -> None:
    known = next(key for key, signature in BUILTIN.items() if signature is name)
    count, d, n, batch = SHAPES[shape]
    pairs = [
        (pair[0], {**pair[1], "l1": torch.tensor(0.02 * k, dtype=dtype)})
        for k, pair in enumerate(members(known, count, d, n, dtype=dtype))
    ]
    params, buffers = (stacking.stack(part) for part in zip(*pairs, strict=True))
    if n > 2:
        params["encoder_bias"][:, 0] = -50.0  # dead
        params["encoder_bias"][:, 1] = 50.0  # dense
        params["decoder"][0, 2] = 0.0
    if count > 2:
        params["encoder_bias"][2] = 0.0
    fast, plain = (gradient_function(name, kernel) for kernel in ("auto", "generic"))
    assert isinstance(fast, closed_form.ReluFamily)
    for seed in range(3):  # the arrays that are kept between calls carry nothing over
        x = rows(batch, d, seed=seed, dtype=dtype)
        found, expected = fast(params, buffers, x), plain(params, buffers, x)
        close(found.params, expected.params, PRECISION[dtype])
        close(
            {"total": found.total, **found.aux},
            {"total": expected.total, **expected.aux},
            PRECISION[dtype],
        )


def test_every_built_in_signature_was_considered() -> None:
    """One without a closed form is listed here, so that it is a decision."""
    assert set(BUILTIN.values()) - set(closed_form.FAMILY) == set()
    assert CASES.keys() == BUILTIN.keys()


@pytest.mark.parametrize("make", ["scale_by_adam", "scale_by_accelerated_adam", "ours"])
def test_adam_is_algorithm_1(make: str) -> None:
    if make == "ours":
        transformation = optimiser.Adam().transformation(torch.device("cpu"))
    else:
        transformation = getattr(torchopt.transform, make)()
    params = {"a": torch.zeros(3, 4, dtype=torch.float64)}
    state, reference = transformation.init(params), ReferenceAdam(lr=1.0)
    for step in range(1, 101):
        gradient = rows(3, 4, seed=step)
        updates, state = transformation.update(
            {"a": gradient.clone()}, state, params=params, inplace=True
        )
        expected = torch.from_numpy(-reference.update(gradient.numpy()))
        # torchopt's own count is an integer, which costs it digits; ours is not.
        assert_close(updates["a"], expected, rtol=1e-12 if make == "ours" else 2e-5, atol=0)
        assert int(state.count["a"]) == step


@pytest.mark.parametrize(
    ("step", "steps", "factor"),
    [(0, 0, 1.0), (9, 0, 1.0), (0, 4, 0.25), (2, 4, 0.75), (3, 4, 1.0), (100, 4, 1.0)],
)
def test_warmup(step: int, steps: int, factor: float) -> None:
    assert schedules.warmup(step, steps) == factor


def test_member_norms_see_what_is_not_finite() -> None:
    stacked = {"w": torch.ones(3, 2, 4), "b": torch.ones(3, 1), "s": torch.zeros(3)}
    stacked["s"][1], stacked["w"][2, 0, 0] = math.nan, math.inf
    norms = stacking.member_norms(stacked)
    assert float(norms[0]) == 3.0
    assert norms.isfinite().tolist() == [True, False, False]
