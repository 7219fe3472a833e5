"""Matching of features against loops over all pairs, all assignments, and planted chains."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from making import rows
from torch import Tensor

import ensemble_sae
from ensemble_sae.analysis import match_table, matched, nearest, tracks
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data import synthetic
from ensemble_sae.data.units import Units
from ensemble_sae.errors import UserError
from ensemble_sae.metrics import matching
from ensemble_sae.run import Run, Sae
from ensemble_sae.sweep import Member

D = 6
MODULE = importlib.import_module("ensemble_sae.analysis.matched")  # a function has its name too


class Given:
    """A signature that has a dictionary, and nothing else."""

    @staticmethod
    def dictionary(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return params["decoder"]


def sae_of(atoms: Tensor, number: int = 0, hook: str = "resid") -> Sae:
    n, d = atoms.shape
    config = Member(
        id=number,
        name=f"m{number}",
        signature="given",
        hook=hook,
        d_activation=d,
        n_dict=n,
        dict_ratio=n / d,
        lr=1e-3,
        grad_clip=None,
        seed=0,
        hyperparameters={},
    )
    return Sae(config, Given, {"decoder": atoms}, {}, Units())


def cosines_of(one: Tensor, two: Tensor) -> np.ndarray:
    a, b = (x.double().numpy() for x in (one, two))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def triples(frame: Any) -> list[tuple[int, int, float]]:
    return [(int(r.feature), int(r.other), float(r.cosine)) for r in frame.itertuples()]


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_each_feature_is_matched_with_the_closest(threshold: float | None) -> None:
    one, two = rows(9, D, 0), rows(7, D, 1)
    expected = []
    for i, line in enumerate(cosines_of(one, two)):
        j = int(line.argmax())
        if threshold is None or line[j] > threshold:
            expected.append((i, j, pytest.approx(line[j])))
    found = triples(matched(sae_of(one), sae_of(two), threshold=threshold))
    assert found == expected
    assert 0 < len(found) <= 9
    assert (len(found) < 9) == (threshold is not None)


def test_mutual_pairs_are_those_that_are_each_others_closest() -> None:
    one, two = rows(12, D, 0), rows(15, D, 1)
    table = cosines_of(one, two)
    expected = [
        (i, j, pytest.approx(table[i, j]))
        for i in range(12)
        for j in range(15)
        if table[i, j] == table[i].max() == table[:, j].max()
    ]
    found = triples(matched(sae_of(one), sae_of(two), how="mutual", threshold=None))
    assert found == expected
    assert 0 < len(found) < 12


@pytest.mark.parametrize("seed", range(3))
def test_hungarian_pairs_are_the_best_of_all_assignments(seed: int) -> None:
    one, two = rows(5, D, 2 * seed), rows(7, D, 2 * seed + 1)
    table = cosines_of(one, two)
    best = max(
        itertools.permutations(range(7), 5),
        key=lambda chosen: sum(table[i, j] for i, j in enumerate(chosen)),
    )
    found = triples(matched(sae_of(one), sae_of(two), how="hungarian", threshold=None))
    assert found == [(i, j, pytest.approx(table[i, j])) for i, j in enumerate(best)]
    some = triples(matched(sae_of(one), sae_of(two), how="hungarian", threshold=0.4))
    assert some == [pair for pair in found if pair[2] > 0.4]
    assert len(some) < len(found)


@pytest.mark.parametrize("how", ["cosine", "mutual", "hungarian"])
def test_rows_that_are_no_directions_are_matched_with_nothing(how: Any) -> None:
    atoms = torch.eye(4)
    atoms[1] = 0
    atoms[2, 0] = math.nan
    found = matched(sae_of(atoms), sae_of(torch.eye(4).flip(0)), how=how)
    assert triples(found) == [(0, 3, 1.0), (3, 0, 1.0)]


def test_other_widths_ways_and_sizes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, wide = sae_of(rows(3, 4), 7), sae_of(rows(3, 5), 8, "mlp")
    for compare in (
        lambda: matched(narrow, wide),
        lambda: tracks([narrow, narrow, wide]),
        lambda: nearest(narrow, [wide]),
    ):
        with pytest.raises(UserError, match="same width") as caught:
            compare()
        assert caught.value.found == "widths 4 and 5"
        assert caught.value.where == "member 7 (m7 on resid) and member 8 (m8 on mlp)"
    with pytest.raises(UserError, match="did you mean 'hungarian'"):
        matched(narrow, narrow, how="hungary")  # type: ignore[arg-type]
    monkeypatch.setattr(MODULE, "MAX_PAIRS", 8)
    with pytest.raises(UserError, match="mutual") as caught:
        tracks([narrow, narrow])
    assert caught.value.found == "3 x 3 features"
    assert tracks([narrow, narrow], how="mutual").features.tolist() == [[0, 0], [1, 1], [2, 2]]


# --- chains

A, B, C, E, F, G = range(6)  # six directions that are nearly orthogonal
CHAIN = ([A, B, C], [C, A, E], [E, F, A, G], [B, A])
TRACKS = {  # direction, and the feature it is in each dictionary
    (A, (0, 1, 2, 1)),
    (B, (1, -1, -1, -1)),  # it is there again at the end, as a track of its own
    (C, (2, 0, -1, -1)),
    (E, (-1, 2, 0, -1)),
    (F, (-1, -1, 1, -1)),
    (G, (-1, -1, 3, -1)),
    (B, (-1, -1, -1, 0)),
}


def chain() -> list[Sae]:
    return [
        sae_of((1 + at) * (torch.eye(8)[parts] + 0.02 * rows(len(parts), 8, at).float()), at)
        for at, parts in enumerate(CHAIN)
    ]


@pytest.mark.parametrize("how", ["hungarian", "mutual"])
def test_features_are_followed_through_a_chain(how: Any) -> None:
    saes = chain()
    found = tracks(saes, how=how)
    assert [tuple(line) for line in found.features.tolist()] == [
        features
        for _, features in sorted(
            TRACKS, key=lambda t: next((at, f) for at, f in enumerate(t[1]) if f >= 0)
        )
    ]
    for track, line in enumerate(found.features.tolist()):
        for at, (one, two) in enumerate(itertools.pairwise(line)):
            value = float(found.cosines[track, at])
            if min(one, two) < 0:
                assert math.isnan(value)
            else:
                table = cosines_of(saes[at].dictionary, saes[at + 1].dictionary)
                assert value == pytest.approx(table[one, two], abs=1e-6)


def test_what_tracks_tell() -> None:
    found = tracks(chain())
    table, counts = found.table, found.counts
    assert table["begins"].tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert table["ends"].tolist() == [3, 0, 1, 2, 2, 2, 3]
    assert table["length"].tolist() == [4, 1, 2, 2, 1, 1, 1]
    assert table["weakest"].isna().tolist() == [False, True, False, False, True, True, True]
    assert table.loc[0, "weakest"] == pytest.approx(float(found.cosines[0].min()))
    assert table["feature_2"].tolist() == [2, -1, -1, 0, 1, 3, -1]
    assert counts["features"].tolist() == [3, 3, 4, 2]
    assert counts["go_on"].tolist() == [0, 2, 2, 1]
    assert counts["begin"].tolist() == [3, 1, 2, 1]
    assert counts["end"].tolist() == [1, 1, 3, 2]
    assert counts["cosine"].isna().tolist() == [True, False, False, False]
    assert counts.loc[3, "name"] == "member 3 (m3 on resid)"


def test_a_chain_may_have_no_match_and_no_atom() -> None:
    empty = sae_of(torch.zeros(2, 3))
    found = tracks([sae_of(torch.eye(3)), sae_of(-torch.eye(3)), empty])
    assert found.features.tolist() == [[i, -1, -1] for i in range(3)] + [
        [-1, i, -1] for i in range(3)
    ]
    assert found.cosines.isnan().all()
    assert found.counts["features"].tolist() == [3, 3, 0]
    with pytest.raises(UserError, match="two dictionaries"):
        tracks([empty])
    with pytest.raises(UserError, match="one-to-one"):
        tracks([empty, empty], how="cosine")


# --- the nearest


@pytest.mark.parametrize("blocks", [(1024, 4096), (4, 5), (3, 2), (5, 3)])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_the_nearest_are_those_of_a_sorted_table(
    k: int, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "ROWS", blocks[0])
    monkeypatch.setattr(matching, "COLUMNS", blocks[1])
    own, other, third = rows(11, D, 0), rows(8, D, 1), rows(13, D, 2)
    own[4] = 0
    found = nearest(sae_of(own, 5), [sae_of(other, 2), sae_of(third, 9)], k)
    expected = []
    for i in range(11):
        for member, atoms in ((5, own), (2, other), (9, third)):
            if i == 4:
                continue
            with np.errstate(invalid="ignore"):
                line = cosines_of(own, atoms)[i]
            order = [
                j for j in np.argsort(-line, kind="stable") if not (member == 5 and j in (i, 4))
            ]
            expected += [(i, member, int(j), pytest.approx(line[j])) for j in order[:k]]
    assert list(found.columns) == ["feature", "member", "other", "cosine"]
    assert [tuple(row) for row in found.itertuples(index=False)] == expected
    assert list(found.index) == list(range(len(found)))


def test_a_copy_of_a_feature_is_near_but_not_itself() -> None:
    atoms = torch.eye(3)[[0, 1, 0]]
    found = nearest(sae_of(atoms, 1), k=1)
    assert triples(found)[0] == (0, 2, 1.0)
    assert triples(found)[2] == (2, 0, 1.0)


def test_this_member_among_the_others_is_left_out_and_names_tell_runs_apart() -> None:
    sae, other = sae_of(rows(4, D, 0), 1), sae_of(rows(4, D, 1), 1)
    assert set(nearest(sae, [sae_of(rows(4, D, 0), 1)])["member"]) == {1}
    with pytest.raises(UserError, match="one id"):
        nearest(sae, [other])
    named = nearest(sae, {"seed 1": other}, k=2)
    assert named["member"].tolist() == [1, 1, "seed 1", "seed 1"] * 4
    with pytest.raises(UserError, match="number of features"):
        nearest(sae, k=0)
    one = sae_of(rows(4, D, 1), 2)
    assert nearest(sae, one).equals(nearest(sae, [one]))


# --- a run

HOOKS = ("uncorrelated", "correlated")
WIDE = 8  # the member of both hooks together


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("matched")
    recipe = SyntheticRecipe(
        kind="synthetic", name="toy", d_activation=8, n_features=12, mean_active=1.5, rows=1_500
    )
    synthetic.harvest(recipe, folder)
    return ensemble_sae.run_sweep(
        [
            {"signature": "tied", "hook": hook, "n_dict": n, "l1": l1, "seed": seed}
            for hook in HOOKS
            for n, l1, seed in ((8, 1e-2, 0), (16, 1e-2, 0), (16, 1e-2, 1), (32, 1e-3, 0))
        ]
        + [{"signature": "tied", "hook": " + ".join(HOOKS), "n_dict": 16, "l1": 1e-2}],
        activations={"store": str(folder / "toy")},
        train={"batch_size": 50, "lr": 1e-2},
        run=folder / "run",
        devices="cpu:1",
        threads=1,
    )


def test_pairs_of_a_run_that_are_beside_each_other(run: Run) -> None:
    found = match_table(run, threshold=0.8)
    assert {(r.member, r.other, r.differs) for r in found.itertuples()} == {
        *((0, 1, "n_dict"), (4, 5, "n_dict")),
        *((1, 2, "seed"), (5, 6, "seed")),
        *((member, member + 4, "hook") for member in range(4)),
    }
    assert len(found) == 8
    for row in found.itertuples():
        table = cosines_of(*(run.sae(int(m)).dictionary for m in (row.member, row.other)))
        assert row.mmcs == pytest.approx(table.max(1).mean(), abs=1e-6)
        assert row.mmcs_back == pytest.approx(table.max(0).mean(), abs=1e-6)
        pairs = matched(
            run.sae(int(row.member)), run.sae(int(row.other)), how="hungarian", threshold=None
        )
        assert row.hungarian == pytest.approx(pairs["cosine"].mean())
        assert row.share == pytest.approx((pairs["cosine"] > 0.8).mean())


def test_chosen_members_are_all_paired(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = match_table(run, [0, 3, 1, 0])
    assert list(zip(found["member"], found["other"], strict=True)) == [(0, 3), (0, 1), (3, 1)]
    assert found.loc[0, "differs"] == "n_dict, l1"
    with pytest.raises(UserError, match="no such member"):
        match_table(run, [0, 99])
    assert match_table(run, [2]).empty
    monkeypatch.setattr(MODULE, "MAX_PAIRS", 8)
    large = match_table(run, [0, 1])
    assert large[["hungarian", "share"]].isna().all(axis=None)
    assert large["mmcs"].notna().all()


def test_members_of_other_widths_are_not_compared(run: Run) -> None:
    assert run.members.loc[WIDE, "d_activation"] == 16
    found = match_table(run, [0, 1, WIDE])
    assert list(zip(found["member"], found["other"], strict=True)) == [(0, 1)]
    with pytest.raises(UserError, match="one width") as caught:
        match_table(run, [WIDE, 1])
    assert caught.value.found == f"member 1: 8, member {WIDE}: 16"
