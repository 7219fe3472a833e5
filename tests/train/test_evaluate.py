"""Held-out metrics against NumPy, over all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from making import at_width, given, members, rows
from torch.testing import assert_close

from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import FunctionalEnsemble, slices
from ensemble_sae.train.evaluate import evaluate

D, N = 6, 9
SILENCING = {"encoder_bias", "gate_bias", "spike_bias"}


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_evaluation(name: str, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(slices.ROOM, "cpu", 2 * 2 * 20 * N * 8)  # two members at a time
    pairs, x = members(name, 5, D, N), rows(50, D) + offset
    for k, (params, _) in enumerate(pairs):
        for bias in SILENCING & params.keys():
            params[bias][:k] = -10 * (offset + 1) * D  # k dead features
    ensemble = FunctionalEnsemble.from_members(BUILTIN[name], pairs)
    found, case = evaluate(ensemble, x.split(20)), at_width(reference.CASES[name][0], D)
    assert found.rows == 50
    for k, pair in enumerate(pairs):
        with np.errstate(all="ignore"):  # far from zero a loss may overflow, not the code
            result = case.result(given(case, pair), x.numpy())
        expected = {
            "fvu": reference.fvu(result.target, result.reconstruction),
            "l0": reference.l0(result.encoded),
            "dead": reference.dead(result.encoded),
            "firing": (result.encoded != 0).sum(0),
            "strength": reference.strength(result.encoded),
        }
        for key, value in expected.items():
            there = getattr(found, key)[k].double()
            wanted = torch.as_tensor(np.asarray(value)).double()
            exact = 1e-6 if key in ("strength", "l0") else 1e-9  # float32 by contract
            assert_close(there, wanted, rtol=exact, atol=0, msg=key)
        if SILENCING & pair[0].keys():
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
