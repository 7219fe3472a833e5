"""Held-out metrics against NumPy, over all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from making import arrays, members, rows
from torch.testing import assert_close

from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import FunctionalEnsemble, slices
from ensemble_sae.train.evaluate import evaluate

D, N = 6, 9


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_evaluation(name: str, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(slices.ROOM, "cpu", 2 * 2 * 20 * N * 8)  # two members at a time
    pairs, x = members(name, 5, D, N), rows(50, D) + offset
    for k, (params, _) in enumerate(pairs):
        params["encoder_bias"][:k] = -10 * (offset + 1) * D  # k dead features
    ensemble = FunctionalEnsemble.from_members(BUILTIN[name], pairs)
    found = evaluate(ensemble, x.split(20))
    assert found.rows == 50
    for k, (params, _) in enumerate(pairs):
        hyper = reference.CASES[name].hyper
        code, reconstruction, _ = reference.CASES[name].result(arrays(params), hyper, x.numpy())
        expected = {
            "fvu": reference.fvu(x.numpy(), reconstruction),
            "l0": reference.l0(code),
            "dead": reference.dead(code),
            "firing": (code != 0).sum(0),
            "strength": reference.strength(code),
        }
        for key, value in expected.items():
            there = getattr(found, key)[k].double()
            wanted = torch.as_tensor(np.asarray(value)).double()
            exact = 1e-6 if key in ("strength", "l0") else 1e-9  # float32 by contract
            assert_close(there, wanted, rtol=exact, atol=0, msg=key)
        assert expected["dead"] >= k / N


def test_without_encode_there_is_nothing_to_evaluate() -> None:
    class Own:
        @staticmethod
        def loss(params, buffers, batch):
            return (batch * params["w"]).sum(), {}

    ensemble = FunctionalEnsemble(Own, {"w": torch.ones(2, D)}, {}, torch.ones(2))
    assert evaluate(ensemble, [rows(3, D)]) is None


def test_no_rows_no_evaluation() -> None:
    pairs = members("tied", 2, D, N)
    assert evaluate(FunctionalEnsemble.from_members(BUILTIN["tied"], pairs), []) is None
