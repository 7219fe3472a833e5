"""Names, hyper-parameters and shared pieces of signatures; their numbers are in `test_table`."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import pytest
import torch

from ensemble_sae.errors import UserError
from ensemble_sae.signatures import BUILTIN, Complete, hyperparameters, name_of, parts, resolve

every = pytest.mark.parametrize("name", BUILTIN)


def test_a_zero_row_is_no_dead_end() -> None:
    matrix = torch.zeros(2, 3).requires_grad_()
    (parts.unit_rows(matrix) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(parts.unit_rows(matrix), torch.zeros(2, 3))
    assert matrix.grad.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_hyperparameters_are_the_keywords_of_init_and_the_options() -> None:
    tied = hyperparameters(BUILTIN["tied"])
    assert tied == {"l1": 1e-3, "bias_decay": 0.0, **BUILTIN["tied"].OPTIONS}
    assert hyperparameters(BUILTIN["transcoder"]) == {"l1": 1e-3}
    assert hyperparameters(Own) == {"k": inspect.Parameter.empty}
    assert hyperparameters(Optional) == {"k": inspect.Parameter.empty, "flag": False}


class Own:
    """All that a user must write."""

    @staticmethod
    def init(d, n, *, generator, k):
        return {}, {}

    @staticmethod
    def loss(params, buffers, batch):
        return batch.sum(), {}


class Optional(Own):
    """With an option, which init is handed by name."""

    OPTIONS: ClassVar[dict[str, Any]] = {"flag": False}

    @staticmethod
    def init(d, n, *, generator, widths=(), k, **options: Any):
        return {}, {}


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
