"""Losses that a change of the code may not move.

The file is written again, after a change that is meant to move them, by

    ENSEMBLE_SAE_WRITE_GOLDEN=1 python -m pytest -n 0 tests/train/test_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ensemble_sae.randomness import generator
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import Dynamics, FunctionalEnsemble

FILE = Path(__file__).parent.parent / "golden" / "losses.json"
WRITE = "ENSEMBLE_SAE_WRITE_GOLDEN"
NAMES = ("untied", "tied", "affine")
D, N, ROWS, STEPS = 16, 24, 64, (1, 10, 30)
L1 = (1e-3, 1e-2, 1e-1)

Losses = dict[str, dict[str, list[float]]]


def losses(kernel: str) -> Losses:
    """Signature -> step -> loss of each member (one per l1) on that step's batch.

    The rows are sparse combinations of 32 directions: 4 of 32 active on average, uniform strength.
    """
    directions = torch.randn(32, D, generator=generator(0, "golden directions"))
    found: Losses = {}
    warmup = Dynamics(lr_warmup=10, l1_warmup=10)
    for name in NAMES:
        signature = BUILTIN[name]
        pairs = [signature.init(D, N, generator=generator(0, "golden"), l1=l1) for l1 in L1]
        ensemble = FunctionalEnsemble.from_members(
            signature,
            pairs,
            lr=3e-3,
            dynamics=[warmup] * len(L1),
            batch_size=ROWS,
            kernel=kernel,
        )
        found[name] = {}
        for step in range(1, max(STEPS) + 1):
            draw = generator(0, "golden rows", step)
            strength = torch.rand(ROWS, 32, generator=draw)
            active = torch.rand(ROWS, 32, generator=draw) < 4 / 32
            ensemble.tally.reset()
            ensemble.step(strength * active @ directions)
            if step in STEPS:
                found[name][str(step)] = ensemble.tally.means()["loss"].tolist()
    return found


@pytest.mark.parametrize("kernel", ["generic", "auto"])
def test_losses_are_those_of_the_file(kernel: str) -> None:
    found = losses(kernel)
    if os.environ.get(WRITE):
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(FILE.read_text(encoding="utf-8"))
    assert found.keys() == expected.keys()
    for name, steps in expected.items():
        for step, values in steps.items():
            assert found[name][step] == pytest.approx(values, rel=1e-5), (name, step)
        assert sum(steps["30"]) < sum(steps["10"])
