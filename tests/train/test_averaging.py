"""Averaged params: what they are, and where they are used."""

from __future__ import annotations

import pytest
import torch
from ensembles import POOL, D, ensemble, stepped, stream
from making import close, equal, members
from reference import averages
from torch import Tensor

from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import FunctionalEnsemble
from ensemble_sae.train.evaluate import evaluate

DECAYS = [0.0, 0.5, 0.99]
EACH = [{"ema": decay} for decay in DECAYS]


@pytest.mark.parametrize("kernel", ["generic", "auto"])
def test_averages_are_those_of_the_formula(kernel: str) -> None:
    pairs = members("untied", 3, D, 9)
    found = ensemble("untied", pairs, *EACH, kernel=kernel)
    plain = ensemble("untied", pairs, kernel=kernel)
    history: list[dict[str, Tensor]] = []
    for batch in stream(25):
        found.step(batch)
        plain.step(batch)
        history.append({name: t.clone() for name, t in plain.params.items()})
    equal(found.params, plain.params)  # what is trained does not notice
    for k, decay in enumerate(DECAYS):
        expected = {
            name: averages(first, [h[name][k] for h in history], decay)
            for name, first in pairs[k][0].items()
        }
        close({name: t[k] for name, t in found.evaluated().items()}, expected, 1e-13)


OPTIONS = [
    ("untied", {}),
    ("untied", {"unit_norm": "project"}),
    ("positive", {"tied": False}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_a_decay_the_params_themselves_are_used(
    name: str, options: dict, dtype: torch.dtype
) -> None:
    pairs = members(name, 3, D, 9, dtype=dtype, **options)
    found = stepped(ensemble(name, pairs, *EACH), stream(20, dtype=dtype))
    for key, tensor in found.evaluated().items():
        assert torch.equal(tensor[0], found.params[key][0])
        assert not torch.equal(tensor[2], found.params[key][2])


def test_without_any_decay_there_is_no_copy() -> None:
    found = ensemble("untied", members("untied", 2, D, 9))
    assert found.evaluated() is found.params


def test_averages_are_inside_the_constraints() -> None:
    pairs = members("positive", 3, D, 9, tied=False, unit_norm="project")
    found = stepped(ensemble("positive", pairs, *EACH), stream(20))
    decoder = found.evaluated()["decoder"]
    assert decoder.min() >= 0
    assert decoder.norm(dim=-1).flatten().tolist() == pytest.approx([1.0] * 27, rel=1e-14)


def test_an_evaluation_is_of_the_averages() -> None:
    found = stepped(ensemble("untied", members("untied", 3, D, 9), *EACH), stream(20))
    params = {name: t.clone() for name, t in found.evaluated().items()}
    plain = FunctionalEnsemble(BUILTIN["untied"], params, found.buffers, found.lr)
    one, other = evaluate(found, POOL), evaluate(plain, POOL)
    assert one.fvu.tolist() == other.fvu.tolist()
    assert torch.equal(one.firing, other.firing)
    moving = FunctionalEnsemble(BUILTIN["untied"], found.params, found.buffers, found.lr)
    moved = evaluate(moving, POOL).fvu.tolist()
    assert moved[0] == one.fvu[0]
    assert moved[2] != one.fvu[2]
