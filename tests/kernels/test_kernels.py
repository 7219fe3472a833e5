"""Closed forms give the numbers of the mapped gradient, and are taken where they are known to."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from making import cast, members, rows

from ensemble_sae.kernels import choice, compiled, plain
from ensemble_sae.kernels import sparse as sparse_module
from ensemble_sae.kernels.choice import Kernels
from ensemble_sae.kernels.dense import DenseKernel
from ensemble_sae.kernels.forms import FORMS
from ensemble_sae.kernels.gradients import mapped
from ensemble_sae.kernels.sparse import SparseKernel
from ensemble_sae.signatures import BUILTIN, Tensors, name_of
from ensemble_sae.train import stacking

CPU = torch.device("cpu")
SHAPES = {  # members, d, n, batch
    "odd": (3, 5, 7, 11),
    "one member": (1, 6, 10, 4),
    "one row": (4, 3, 5, 1),
    "one feature": (2, 4, 1, 6),
    "wide": (2, 3, 65, 9),
    "narrow": (5, 33, 4, 2),
    "blocks": (3, 16, 40, 37),
}
PRECISION = {torch.float64: 1e-10, torch.float32: 1e-5}
BIASES = {"none active": -50.0, "few": -1.5, "half": 0.0, "all": 50.0}
WAYS = [  # every way to set up a member that a closed form knows
    pytest.param(signature, options, id=f"{name_of(signature)} {' '.join(options.values())}")
    for signature, form in FORMS.items()
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
ways = pytest.mark.parametrize(("signature", "options"), WAYS)
KERNELS = {
    "dense": DenseKernel,
    "compiled": partial(SparseKernel, load=lambda: compiled),
    "plain": partial(SparseKernel, load=lambda: plain),
}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
precise = pytest.mark.parametrize(  # what is compiled is compiled for each
    ("kernel", "dtype"),
    [
        pytest.param(KERNELS[name], dtype, id=f"{name} {dtype}")
        for name, dtype in itertools.product(KERNELS, PRECISION)
        if name != "plain" or dtype == torch.float64
    ],
)
sparse = pytest.mark.parametrize("kernel", [KERNELS["compiled"], KERNELS["plain"]])


def stacked(signature: type, count: int, d: int, n: int, **options: Any) -> tuple[Tensors, Tensors]:
    pairs = members(name_of(signature), count, d, n, **options)
    params, buffers = (stacking.stack(part) for part in zip(*pairs, strict=True))
    numbers = torch.arange(count, dtype=params["decoder"].dtype)
    if "l1" in buffers:
        buffers["l1"] = 0.02 * numbers
    if "k" in buffers:
        buffers["k"] = (1 + 2 * numbers).clamp(max=n)
    if "threshold" in buffers:
        buffers["threshold"] = 0.3 * numbers - 1  # before the first step, and after
    return params, buffers


def same(kernel: Any, signature: type, params: Tensors, buffers: Tensors, *batches: Any) -> None:
    """A kernel's numbers are those of autograd in float64, also when it is called again."""
    known, plain, dtype = kernel(FORMS[signature]), mapped(signature), batches[0].dtype
    exact = [cast(tensors, torch.float64) for tensors in (params, buffers)]
    for x in batches:
        found, expected = known(params, buffers, x), plain(*exact, x.double())
        near(found.params, expected.params, PRECISION[dtype])
        told = {"total": expected.total, **expected.aux}
        near({"total": found.total, **found.aux}, told, PRECISION[dtype])


def near(found: Tensors, expected: Tensors, tolerance: float) -> None:
    """Equal names, and tensors that differ by `tolerance` of their norm at most."""
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        error = torch.linalg.vector_norm(tensor.double() - expected[key])
        assert error <= tolerance * torch.linalg.vector_norm(expected[key]), key


@precise
@ways
@pytest.mark.parametrize("shape", SHAPES)
def test_the_numbers_are_those_of_the_mapped_gradient(
    kernel: Any, signature: type, options: dict[str, Any], shape: str, dtype: torch.dtype
) -> None:
    count, d, n, batch = SHAPES[shape]
    params, buffers = stacked(signature, count, d, n, dtype=dtype, **options)
    if n > 2:
        params["encoder_bias"][:, 0] = -50.0  # dead
        params["encoder_bias"][:, 1] = 10.0  # dense
        params["decoder"][0, 2] = 0.0
    if count > 2:
        params["encoder_bias"][2] = 0.0
    same(kernel, signature, params, buffers, *(rows(batch, d, s, dtype=dtype) for s in range(2)))


@precise
@ways
@pytest.mark.parametrize("bias", BIASES)
def test_at_every_density(
    kernel: Any, signature: type, options: dict[str, Any], bias: str, dtype: torch.dtype
) -> None:
    params, buffers = stacked(signature, 3, 6, 33, dtype=dtype, **options)
    params["encoder_bias"].fill_(BIASES[bias])
    same(kernel, signature, params, buffers, rows(20, 6, dtype=dtype))


@ways
@sparse
@pytest.mark.parametrize("room", [1, 10**6])
def test_members_may_be_scored_in_several_parts(
    kernel: Any,
    signature: type,
    options: dict[str, Any],
    room: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sparse_module.ROOM, "cpu", room)
    params, buffers = stacked(signature, 5, 6, 33, **options)
    same(kernel, signature, params, buffers, rows(20, 6), rows(3, 6), rows(40, 6))


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
@kernels
def test_equal_scores_are_all_kept(kernel: Any, name: str) -> None:
    params, buffers = stacked(BUILTIN[name], 2, 4, 70, centring="learned")
    for key in ("encoder", "encoder_bias", "centre"):
        params[key] = (2 * params[key]).round()  # so that sums are exact in any order
    params["encoder"][:, 10:] = params["encoder"][:, :1]
    params["encoder_bias"][:, 10:] = params["encoder_bias"][:, :1]
    same(kernel, BUILTIN[name], params, buffers, rows(9, 4).round())


@sparse
def test_a_guess_that_is_too_high_is_mended(kernel: Any) -> None:
    params, buffers = stacked(BUILTIN["batchtopk"], 3, 4, 30, centring="mean")
    buffers["threshold"] = torch.tensor([1e3, 0.0, 0.1], dtype=torch.float64)
    same(kernel, BUILTIN["batchtopk"], params, buffers, rows(9, 4))


@kernels
@ways
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["encoder_bias", "decoder"])
def test_what_is_not_finite_is_seen(
    kernel: Any, signature: type, options: dict[str, Any], value: float, place: str
) -> None:
    params, buffers = stacked(signature, 3, 6, 33, dtype=torch.float32, **options)
    params["encoder_bias"][:] = 0.1
    params[place][1, 4] = value
    found = kernel(FORMS[signature])(params, buffers, rows(20, 6, dtype=torch.float32))
    assert found.total.isfinite().tolist() == [True, False, True]
    assert not getattr(found, "is_tame", False)


# --- who takes which


def chosen(signature: type, kernel: Any, **options: Any) -> Kernels:
    params, buffers = stacked(signature, 2, 5, 70, **options)
    return Kernels(signature, kernel, params, buffers, CPU)


@ways
@pytest.mark.parametrize("option", OPTIONS, ids=str)
@pytest.mark.parametrize("kernel", ["auto", "dense", "sparse"])
def test_an_option_that_the_closed_form_does_not_know_is_mapped(
    signature: type, options: dict[str, Any], option: dict[str, Any], kernel: Any
) -> None:
    found = chosen(signature, kernel, **options, **option)
    assert not isinstance(found.dense, DenseKernel)
    assert found.sparse is None
    assert not found.is_sparse.any()


def test_a_missing_tensor_is_mapped_too() -> None:
    assert not isinstance(chosen(BUILTIN["affine"], "auto", centring="none").dense, DenseKernel)


@ways
def test_the_kernel_that_is_asked_for(signature: type, options: dict[str, Any]) -> None:
    found = {name: chosen(signature, name, **options) for name in ("generic", "dense", "sparse")}
    assert not isinstance(found["generic"].dense, DenseKernel)
    assert isinstance(found["dense"].dense, DenseKernel)
    assert found["generic"].sparse is found["dense"].sparse is None
    assert isinstance(found["sparse"].of(True), SparseKernel)
    assert found["sparse"].is_sparse.all()


def test_of_members_that_select_it_is_known_before() -> None:
    params, buffers = stacked(BUILTIN["topk"], 2, 5, 70, centring="learned")
    buffers["k"] = torch.tensor([10.0, 11.0], dtype=torch.float64)  # of 70: 14%, 16%
    found = Kernels(BUILTIN["topk"], "auto", params, buffers, CPU)
    assert found.is_sparse.tolist() == [True, False]


def test_members_change_over_with_a_margin() -> None:
    found = chosen(BUILTIN["tied"], "auto")
    every = choice.EVERY

    def look(first: float, second: float, step: int) -> bool:
        found.observe(0, 2, {"l0": 70 * torch.tensor([first, second])}, None)
        return found.look(step)

    between = (choice.BELOW + choice.ABOVE) / 2
    assert not look(choice.BELOW / 2, 0.5, every + 1)
    assert look(choice.BELOW / 2, 0.5, every)
    assert found.is_sparse.tolist() == [True, False]
    assert not look(between, between, 2 * every)
    assert look(choice.ABOVE, 0.0, 3 * every)
    assert found.is_sparse.tolist() == [False, True]
    assert not look(math.nan, math.nan, 4 * every)


def test_without_numba_the_loops_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.loops() is compiled
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    found = chosen(BUILTIN["tied"], "auto").sparse
    assert found is not None
    assert found.loops is plain


def test_member_norms_see_what_is_not_finite() -> None:
    stacked = {"w": torch.ones(3, 2, 4), "b": torch.ones(3, 1), "s": torch.zeros(3)}
    stacked["s"][1], stacked["w"][2, 0, 0] = math.nan, math.inf
    norms = stacking.member_norms(stacked)
    assert float(norms[0]) == 3.0
    assert norms.isfinite().tolist() == [True, False, False]
