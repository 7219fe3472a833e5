"""Rounded products: every kernel stays near float32, and what is trained is never rounded."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from making import members, rows
from test_kernels import WAYS, stacked

from ensemble_sae.errors import UserError
from ensemble_sae.kernels import compiled
from ensemble_sae.kernels.choice import Kernels
from ensemble_sae.kernels.dense import DenseKernel
from ensemble_sae.kernels.forms import FORMS
from ensemble_sae.kernels.gradients import mapped
from ensemble_sae.kernels.kept import Kept
from ensemble_sae.kernels.precision import Products, products
from ensemble_sae.kernels.sparse import SparseKernel
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import FunctionalEnsemble

CPU = torch.device("cpu")
KERNELS: dict[str, Any] = {
    "generic": mapped,
    "dense": lambda signature, precision: DenseKernel(FORMS[signature], precision),
    "sparse": lambda signature, precision: SparseKernel(
        FORMS[signature], lambda: compiled, precision
    ),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("signature", "options"), WAYS)
def test_gradients_are_near_those_of_float32(
    signature: type, options: dict[str, Any], kernel: str
) -> None:
    params, buffers = stacked(signature, 3, 24, 40, dtype=torch.float32, **options)
    x = rows(64, 24, dtype=torch.float32)
    exact, rounded = (KERNELS[kernel](signature, p)(params, buffers, x) for p in ("fp32", "bf16"))
    for name, expected in exact.params.items():
        found = rounded.params[name]
        assert found.dtype == torch.float32
        error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
        assert error < 0.15, name  # whole features change sides where scores are near 0
    assert 0 < float((rounded.total / exact.total - 1).abs().max()) < 0.02


@pytest.mark.parametrize("shape", [(5, 70, 33), (3, 5, 70, 33)], ids=str)
def test_a_product_is_that_of_the_rounded_factors(shape: tuple[int, ...]) -> None:
    *stack, a, b, c = shape
    left, right = torch.randn(*stack, a, b), torch.randn(*stack, b, c)
    multiply = Products("bf16", Kept())
    factors = multiply.factor("left", left), multiply.factor("right", right)
    assert all(torch.equal(f, t.bfloat16()) for f, t in zip(factors, (left, right), strict=True))
    found = multiply.mm(*factors, out=torch.empty(*stack, a, c))
    expected = factors[0].double() @ factors[1].double()
    assert float((found - expected).abs().max() / expected.abs().max()) < 2**-8
    plain = Products("fp32", Kept())
    assert plain.factor("left", left) is left


@pytest.mark.parametrize("kernel", KERNELS)
def test_steps_that_are_smaller_than_a_rounded_digit_are_not_lost(kernel: Any) -> None:
    ensembles = {}
    for precision in ("fp32", "bf16"):
        pairs = members("untied", 2, 16, 32, dtype=torch.float32, l1=0.01)
        ensembles[precision] = FunctionalEnsemble.from_members(
            BUILTIN["untied"], pairs, lr=1e-5, batch_size=64, kernel=kernel, precision=precision
        )
        for step in range(30):
            ensembles[precision].step(rows(64, 16, step, dtype=torch.float32))
    start = members("untied", 2, 16, 32, dtype=torch.float32, l1=0.01)[0][0]["decoder"]
    moved = {p: e.member(0)[0]["decoder"] - start for p, e in ensembles.items()}
    assert all(tensor.dtype == torch.float32 for tensor in ensembles["bf16"].params.values())
    states = ensembles["bf16"].state_dict()
    assert all(t.dtype == torch.float32 for k, t in states.items() if k.startswith("optimiser/mu"))
    error = torch.linalg.vector_norm(moved["bf16"] - moved["fp32"])
    assert error < 0.2 * torch.linalg.vector_norm(moved["fp32"])
    assert float(moved["fp32"].abs().max()) < 2**-9 * float(start.abs().max())


def test_the_setting_of_tf32_ends_with_the_step() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    for precision, inside in (("tf32", True), ("fp32", False)):
        with products(precision, torch.device("cuda")):
            assert matmul.allow_tf32 is inside
        assert matmul.allow_tf32 is before


@pytest.mark.parametrize(
    ("precision", "words"),
    [("tf32", ["CUDA", "tf32 on cpu", "bf16"]), ("fp16", ["'fp16'", "fp32, tf32, bf16"])],
)
def test_what_a_device_does_not_have_is_refused(precision: Any, words: list[str]) -> None:
    make = partial(Kernels, BUILTIN["tied"], "auto", *stacked(BUILTIN["tied"], 2, 5, 7), CPU)
    with pytest.raises(UserError) as error:
        make(precision)
    assert [word for word in words if word not in str(error.value)] == []
