"""Whole steps: by every kernel the same training, resumed bit for bit, members on their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from making import close, equal, members, rows
from torch import Tensor

from ensemble_sae.kernels import choice, plain
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import Dynamics, FunctionalEnsemble, Optimiser

D, N, B = 6, 40, 32
NAMES = ("untied", "tied", "tied_centered", "affine", "topk", "batchtopk")
OPTIONS: dict[str, dict[str, Any]] = {
    "untied": {"l1": 0.05, "bias_decay": 0.1},
    "tied": {"l1": 0.05, "bias_decay": 0.1},
    "tied_centered": {"l1": 0.05, "centring": "learned"},
    "affine": {"l1": 0.05, "centring": "learned"},
    "topk": {"k": 3.0, "centring": "learned"},
    "batchtopk": {"k": 3.0, "centring": "learned"},
}
names = pytest.mark.parametrize("name", NAMES)


def made(name: str, kernel: Any, count: int = 3, **options: Any) -> FunctionalEnsemble:
    pairs = members(name, count, D, N, **OPTIONS[name])
    options = {"lr": [0.01, 0.02, 0.005][:count], "batch_size": B, **options}
    return FunctionalEnsemble.from_members(BUILTIN[name], pairs, kernel=kernel, **options)


def stream(steps: int) -> list[Tensor]:
    return [rows(B, D, seed) for seed in range(steps)]


def stepped(ensemble: FunctionalEnsemble, batches: list[Tensor]) -> FunctionalEnsemble:
    for batch in batches:
        ensemble.step(batch)
    return ensemble


def state(ensemble: FunctionalEnsemble) -> dict[str, Tensor]:
    """What training has made of the members, whoever did it."""
    found = {k: t.double() for k, t in ensemble.state_dict().items() if k != "is_sparse"}
    return {k: t.nan_to_num(-1.0) for k, t in found.items()}


WAYS = {
    "adam": {},
    "adamw": {"optimiser": Optimiser("adamw", weight_decay=0.1)},
    "sgd": {"optimiser": Optimiser("sgd")},
    "clipped": {"grad_clip": torch.tensor([0.1, float("inf"), 1.0], dtype=torch.float64)},
    "schedules": {"dynamics": [Dynamics(lr_warmup=5, l1_warmup=7, ema=0.9)] * 3},
    "remove_parallel": {"dynamics": [Dynamics(remove_parallel=True)] * 3},
    "resample": {"dynamics": [Dynamics(resample="loss", resample_every=5, dead_after=3)] * 3},
}


@names
@pytest.mark.parametrize("way", WAYS)
def test_trainings_are_the_same(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = state(stepped(made(name, "generic", **WAYS[way]), stream(12)))
    for kernel in ("dense", "sparse"):
        close(state(stepped(made(name, kernel, **WAYS[way]), stream(12))), expected, 1e-8)
    monkeypatch.setattr(choice, "loops", lambda: plain)
    close(state(stepped(made(name, "sparse", **WAYS[way]), stream(12))), expected, 1e-8)


def test_no_gradient_is_in_memory_where_only_adam_wants_it() -> None:
    seen = {}
    for way in WAYS:
        found = stepped(made("untied", "sparse", **WAYS[way]), stream(1))
        assert found.kernels.sparse is not None
        seen[way] = any(key[0] == "d_decoder" for key in found.kernels.sparse.kept._arrays)
    assert [way for way, there in seen.items() if there] == ["sgd", "clipped", "remove_parallel"]


@names
@pytest.mark.parametrize("kernel", ["dense", "sparse", "auto"])
def test_resumed_bit_for_bit(name: str, kernel: str, tmp_path: Path) -> None:
    batches = stream(30)
    whole = stepped(made(name, kernel), batches)
    stepped(first := made(name, kernel), batches[:17]).save(tmp_path / "e.safetensors")
    second = FunctionalEnsemble.load(tmp_path / "e.safetensors")
    assert torch.equal(second.kernels.is_sparse, first.kernels.is_sparse)
    equal(stepped(second, batches[17:]).state_dict(), whole.state_dict())


THREADS = """
import hashlib, sys, torch
from test_steps import NAMES, made, stepped, stream
torch.set_num_threads(int(sys.argv[1]))
for name in NAMES:
    found = stepped(made(name, "sparse"), stream(3)).state_dict()
    print(*(hashlib.md5(tensor.numpy().tobytes()).hexdigest() for tensor in found.values()))
"""


def test_nothing_depends_on_the_number_of_threads() -> None:
    here = Path(__file__).parent
    said = []
    for threads in ("1", "2"):
        pools = {"NUMBA_NUM_THREADS": "2", "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
        command = [sys.executable, "-c", THREADS, threads]
        done = subprocess.run(
            command, env=os.environ | pools, check=True, capture_output=True, text=True
        )
        said.append(done.stdout)
    assert len(said[0].splitlines()) == len(NAMES)
    assert said[0] == said[1]


@names
@pytest.mark.parametrize("kernel", ["dense", "sparse"])
def test_alone_as_among_others(name: str, kernel: str) -> None:
    together = stepped(made(name, kernel), stream(10))
    for k in range(3):
        pair = members(name, 3, D, N, **OPTIONS[name])[k]
        rate = [0.01, 0.02, 0.005][k]
        alone = FunctionalEnsemble.from_members(
            BUILTIN[name], [pair], lr=rate, batch_size=B, kernel=kernel
        )
        close(stepped(alone, stream(10)).member(0)[0], together.member(k)[0], 1e-9)


@names
def test_a_member_that_breaks_leaves_the_others_alone(name: str) -> None:
    broken, whole = made(name, "sparse"), made(name, "sparse")
    broken.params["decoder"][1, 2, 0] = float("nan")
    for ensemble in (broken, whole):
        stepped(ensemble, stream(5))
    assert broken.health.frozen_at.tolist() == [-1, 0, -1]
    for k in (0, 2):
        close(broken.member(k)[0], whole.member(k)[0], 1e-9)
    assert int(broken.params["decoder"][1].isnan().sum()) == 1


def test_members_change_over_on_their_own() -> None:
    """A member whose codes become sparse takes the other kernel, and nothing is lost by it."""
    pairs = members("untied", 4, D, N, bias_decay=0.0)
    for (params, _), bias in zip(pairs, (-6.0, 2.0, -6.0, -6.0), strict=True):
        params["encoder_bias"].fill_(bias)
    made_ = {
        kernel: FunctionalEnsemble.from_members(
            BUILTIN["untied"], pairs, lr=1e-3, batch_size=B, kernel=kernel
        )
        for kernel in ("auto", "generic")
    }
    assert not made_["auto"].kernels.is_sparse.any()
    stepped(made_["auto"], stream(choice.EVERY))
    assert made_["auto"].kernels.is_sparse.tolist() == [True, False, True, True]
    assert made_["auto"].states.slices == [(0, 1, True), (1, 2, False), (2, 4, True)]
    stepped(made_["auto"], stream(20)[choice.EVERY :])
    close(state(made_["auto"]), state(stepped(made_["generic"], stream(20))), 1e-8)
    with torch.no_grad():  # and back
        made_["auto"].params["encoder_bias"][0] = 2.0
    stepped(made_["auto"], stream(choice.EVERY))
    assert made_["auto"].kernels.is_sparse.tolist() == [False, False, True, True]
