"""Which features are dead."""

from __future__ import annotations

import torch
from ensembles import D, N, ensemble, stream
from making import members
from torch import Tensor

from ensemble_sae.randomness import generator
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train.activity import Activity


def test_a_feature_is_dead_when_it_has_been_silent_for_long() -> None:
    dead_after, mask = torch.tensor([1, 3]), torch.ones(2, N)
    mask[1, 5:] = 0
    activity, silent = Activity(N, dead_after, mask), [[0] * N for _ in range(2)]
    draw = generator(0, "test activity")
    for _ in range(20):
        fired = torch.randint(0, 3, (2, N), generator=draw)
        activity.observe(0, 1, fired[:1])
        activity.observe(1, 2, fired[1:])
        for k in range(2):
            silent[k] = [0 if fired[k, i] else silent[k][i] + 1 for i in range(N)]
        expected = [
            [silent[k][i] >= dead_after[k] and bool(mask[k, i]) for i in range(N)] for k in range(2)
        ]
        assert activity.silent.tolist() == silent
        assert activity.dead.tolist() == expected


def test_features_that_begin_anew_are_alive() -> None:
    activity = Activity(4, torch.tensor([1, 1]))
    activity.observe(0, 2, torch.zeros(2, 4))
    activity.restart(1, torch.tensor([0, 2]))
    assert activity.dead.tolist() == [[True] * 4, [False, True, False, True]]


def test_an_ensemble_counts_what_its_code_says() -> None:
    found = ensemble("untied", members("untied", 2, D, N), {"freeze_every": 1000})
    found.params["encoder_bias"][:, :4] -= 3.0  # seldom active
    silent = torch.zeros(2, N)
    for batch in stream(8):
        fired = torch.stack([_fired(params, buffers, batch) for params, buffers in found.members()])
        silent = torch.where(fired > 0, 0, silent + 1)
        found.step(batch)
        assert found.mechanisms.activity.silent.tolist() == silent.tolist()
    assert silent.any()


def _fired(params: dict[str, Tensor], buffers: dict[str, Tensor], batch: Tensor) -> Tensor:
    return (BUILTIN["untied"].encode(params, buffers, batch) != 0).sum(0)


def test_nobody_counts_where_nobody_asks() -> None:
    assert ensemble("untied", members("untied", 2, D, N)).mechanisms.activity is None
    pairs = members("untied", 2, D, N, revive="aux_k")
    assert ensemble("untied", pairs).mechanisms.activity is not None
