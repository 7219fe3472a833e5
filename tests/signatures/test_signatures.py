"""Every built-in signature against its formula; a new one must enter `reference.CASES`."""

from __future__ import annotations

import inspect

import pytest
import torch
from making import arrays, cast, close, copied, equal, member, rows
from reference import CASES
from torch.func import grad

from ensemble_sae.errors import UserError
from ensemble_sae.randomness import generator
from ensemble_sae.signatures import BUILTIN, Complete, hyperparameters, name_of, parts, resolve

every = pytest.mark.parametrize("name", BUILTIN)
D, N, B = 5, 7, 11


def test_every_signature_has_a_reference() -> None:
    assert CASES.keys() == BUILTIN.keys()


@every
def test_code_reconstruction_and_loss_follow_the_formula(name: str) -> None:
    signature, (params, buffers), x = BUILTIN[name], member(name, D, N), rows(B, D)
    expected = CASES[name].result(arrays(params), CASES[name].hyper, x.numpy())
    code = signature.encode(params, buffers, x)
    total, aux = signature.loss(params, buffers, x)
    found = {
        "code": code,
        "reconstruction": signature.decode(params, buffers, code),
        "total": total,
        "mse": aux["mse"],
        "l0": aux["l0"],
    }
    wanted = {
        "code": expected.code,
        "reconstruction": expected.reconstruction,
        "total": expected.total,
        "mse": ((expected.reconstruction - x.numpy()) ** 2).mean(),
        "l0": (expected.code > 0).sum(1).mean(),
    }
    close(found, {k: torch.tensor(v, dtype=torch.float64) for k, v in wanted.items()}, 1e-12)
    assert 0 < aux["l0"] < N  # the test means something


@every
def test_gradient_of_the_loss(name: str) -> None:
    params, buffers = member(name, D, N)
    names, values = zip(*params.items(), strict=True)

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        return BUILTIN[name].loss(dict(zip(names, tensors, strict=True)), buffers, rows(B, D)).total

    assert torch.autograd.gradcheck(total, tuple(v.requires_grad_() for v in values))


@every
def test_loss_is_made_of_encode_decode_and_penalties(name: str) -> None:
    signature, (params, buffers), x = BUILTIN[name], member(name, D, N), rows(B, D)
    code = signature.encode(params, buffers, x)
    total = (signature.decode(params, buffers, code) - x).square().mean()
    total += buffers["l1"] * code.abs().sum(1).mean()
    if "bias_decay" in buffers:
        total += buffers["bias_decay"] * params["encoder_bias"].norm()
    torch.testing.assert_close(signature.loss(params, buffers, x).total, total, rtol=1e-12, atol=0)


@every
def test_dictionary_has_unit_rows_and_project_keeps_them(name: str) -> None:
    signature, pair = BUILTIN[name], member(name, D, N)
    params, buffers = copied(pair)
    projected = signature.project(params, buffers)
    norms = signature.dictionary(projected, buffers).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-14, atol=0)
    equal(signature.project(projected, buffers), projected)
    before, after = (signature.loss(p, buffers, rows(B, D)).total for p in (pair[0], projected))
    assert torch.equal(before, after)


@every
def test_init_is_a_function_of_its_generator(name: str) -> None:
    first, again, other = (
        BUILTIN[name].init(D, N, generator=generator(seed, "init")) for seed in (0, 0, 1)
    )
    equal(first[0], again[0])
    assert not torch.equal(first[0]["decoder"], other[0]["decoder"])
    assert {t.dtype for t in first[0].values()} == {torch.float32}
    assert first[1].keys() == hyperparameters(BUILTIN[name]).keys()
    _, buffers = BUILTIN[name].init(D, N, generator=generator(0, ""), **CASES[name].hyper)
    close(buffers, {k: torch.tensor(v) for k, v in CASES[name].hyper.items()}, 1e-7)


@every
@pytest.mark.parametrize(
    ("tensor", "value"),
    [("encoder_bias", 0.0), ("encoder_bias", -100.0), ("decoder", 0.0), ("encoder_bias", 1.0)],
    ids=["zero bias", "all dead", "zero decoder row", "dense"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_are_finite(name: str, tensor: str, value: float, dtype: torch.dtype) -> None:
    params, buffers = member(name, D, N, dtype=dtype)
    params[tensor][2 if tensor == "decoder" else slice(None)] = value
    x = rows(B, D, dtype=dtype)
    gradients = grad(lambda p: BUILTIN[name].loss(p, buffers, x).total)(params)
    assert BUILTIN[name].loss(params, buffers, x).total.isfinite()
    assert all(g.isfinite().all() and g.norm() < 1e3 for g in gradients.values())


def test_a_zero_row_is_no_dead_end() -> None:
    matrix = torch.zeros(2, 3).requires_grad_()
    (parts.unit_rows(matrix) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(parts.unit_rows(matrix), torch.zeros(2, 3))
    assert matrix.grad.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_hyperparameters_are_the_keywords_of_init() -> None:
    assert hyperparameters(BUILTIN["tied"]) == {"l1": 1e-3, "bias_decay": 0.0}
    assert hyperparameters(BUILTIN["affine"]) == {"l1": 1e-3}
    assert hyperparameters(Own) == {"k": inspect.Parameter.empty}


class Own:
    """All that a user must write."""

    @staticmethod
    def init(d, n, *, generator, k):
        return {}, {}

    @staticmethod
    def loss(params, buffers, batch):
        return batch.sum(), {}


@every
def test_built_in_signatures_are_complete_and_found_by_name(name: str) -> None:
    assert isinstance(BUILTIN[name], Complete)
    assert resolve(name) is BUILTIN[name]
    assert name_of(BUILTIN[name]) == name


def test_own_classes_are_found_by_module_and_name() -> None:
    assert resolve(f"{__name__}:Own") is Own
    assert name_of(Own) == f"{__name__}:Own"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("teid", ["Unknown signature", "'teid'", "untied", "did you mean 'tied'", "module:Class"]),
        ("no_such_module:Own", ["cannot be imported", "no_such_module", "PYTHONPATH"]),
        (f"{__name__}:Missing", ["cannot be imported", "Missing"]),
        (":Own", ["cannot be imported"]),
        ("..relative:Own", ["cannot be imported"]),
        ("math:pi", ["lacks init and loss"]),
        ("ensemble_sae.train.schedules:Schedule", ["lacks init and loss"]),
    ],
)
def test_unknown_names_are_explained(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        resolve(name)
    assert [word for word in words if word not in str(error.value)] == []


@every
def test_float32_is_float64_to_rounding(name: str) -> None:
    (params, buffers), x = member(name, D, N), rows(B, D)
    exact = BUILTIN[name].loss(params, buffers, x).total
    rough = BUILTIN[name].loss(cast(params, torch.float32), cast(buffers, torch.float32), x.float())
    torch.testing.assert_close(rough.total.double(), exact, rtol=1e-5, atol=0)
