"""Histories of features: of made-up tracks, and of a run against a slow reading of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import ensemble_sae
from ensemble_sae.analysis import History, neighbours, recovery
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data import synthetic
from ensemble_sae.errors import UserError
from ensemble_sae.run import Run

TRACKS = {  # cosine with the closest atom, and which atom that is, at steps 10, 20, 30, 40
    "never": ([0.1, 0.2, 0.3, 0.9], [0, 0, 0, 0]),  # 0.9 is not above 0.9
    "at once": ([0.95, 0.95, 0.95, 0.95], [1, 1, 1, 1]),
    "late": ([0.1, 0.5, 0.95, 0.99], [2, 3, 3, 3]),
    "lost": ([0.1, 0.95, 0.5, 0.4], [2, 2, 2, 2]),
    "lost twice": ([0.95, 0.5, 0.95, 0.5], [4, 4, 4, 4]),
    "lost and back": ([0.95, 0.1, 0.95, 0.95], [5, 5, 5, 5]),
    "moved": ([0.95, 0.95, 0.95, 0.95], [6, 6, 7, 7]),
}
NAMES = list(TRACKS)


def made_up() -> History:
    cosine, entry = (torch.tensor([TRACKS[n][i] for n in NAMES]).T for i in (0, 1))
    similar = torch.full((3, 8), 0.5)
    return History(torch.tensor([10, 20, 30, 40]), cosine, entry, similar, 0.9)


def test_when_features_are_learned_and_lost():
    history = made_up()
    assert dict(zip(NAMES, history.learned_at.tolist(), strict=True)) == {
        "never": -1,
        "at once": 10,
        "late": 30,
        "lost": 20,
        "lost twice": 10,
        "lost and back": 10,
        "moved": 10,
    }
    assert dict(zip(NAMES, history.unlearned_at.tolist(), strict=True)) == {
        "never": -1,
        "at once": -1,
        "late": -1,
        "lost": 30,
        "lost twice": 40,
        "lost and back": 20,
        "moved": -1,
    }
    kept = {n for n, there in zip(NAMES, history.still_learned.tolist(), strict=True) if there}
    assert kept == {"at once", "late", "lost and back", "moved"}
    same = {n for n, there in zip(NAMES, history.same_entry.tolist(), strict=True) if there}
    assert same == kept - {"moved"}


def test_counts_over_time():
    counts = made_up().counts
    assert list(counts.index) == [10, 20, 30, 40]
    assert list(counts["learned"]) == [4, 3, 5, 4]
    assert list(counts["unlearned"]) == [0, 2, 1, 2]
    assert list(counts["same_entry"]) == [4, 3, 4, 3]
    assert counts["self_similarity"].isna().tolist() == [True, False, False, False]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("histories")
    recipe = SyntheticRecipe(
        kind="synthetic",
        name="toy",
        hooks=("uncorrelated",),
        d_activation=8,
        n_features=12,
        decay=0.9,
        mean_active=1.5,
        rows=4_000,
        chunk_rows=1_000,
        on_the_fly=True,
    )
    synthetic.harvest(recipe, folder)
    members = [
        {"signature": "tied", "dict_ratio": ratio, "l1": 1e-2, "seed": seed}
        for ratio in (1, 2)
        for seed in (0, 1)
    ]
    return ensemble_sae.run_sweep(
        members,
        activations={"store": str(folder / "toy")},
        train={"batch_size": 50, "lr": 1e-2, "keep_checkpoints": 9},
        run=folder / "run",
        devices="cpu:1",
        threads=1,
    )


def test_a_run_is_followed_through_its_checkpoints(run: Run):
    found = ensemble_sae.histories(run, threshold=0.7)
    truth = run.truth("uncorrelated")
    assert truth is not None
    assert found.reference == "truth"
    assert list(found.table.index) == [0, 1, 2, 3]
    for member, history in found.of.items():
        atoms = [run.sae(member, checkpoint=c).dictionary for c in run.checkpoints]
        assert history.steps.tolist() == [c.step for c in run.checkpoints]
        assert len(atoms) >= 3
        for at, dictionary in enumerate(atoms):
            cosines = truth.atoms.double() @ dictionary.double().T
            torch.testing.assert_close(
                history.cosine[at].double(), cosines.max(1).values, atol=1e-6, rtol=0
            )
            assert torch.equal(history.entry[at], cosines.argmax(1))
            if at:
                own = (atoms[at - 1] * dictionary).sum(1)
                torch.testing.assert_close(history.self_similarity[at - 1], own)
        row = found.table.loc[member]
        assert row["features"] == 12
        assert row["still_learned"] == int((history.cosine[-1] > 0.7).sum())
        assert row["learned"] >= row["still_learned"] >= row["same_entry"]


def test_without_a_truth_the_last_atoms_are_followed(run: Run):
    found = ensemble_sae.histories(run, members=[2], reference="final")
    assert found.reference == "final"
    assert found[2].still_learned.all()
    assert found[2].cosine.shape == (len(run.checkpoints), 16)


def test_how_much_of_the_truth_is_found(run: Run):
    found = recovery(run)
    truth = run.truth("uncorrelated")
    assert truth is not None
    for member, row in found.iterrows():
        cosines = run.sae(int(str(member))).dictionary @ truth.atoms.T
        assert row["mmcs"] == pytest.approx(cosines.max(1).values.mean().item(), abs=1e-6)
        assert row["mmcs_truth"] == pytest.approx(cosines.max(0).values.mean().item(), abs=1e-6)
        assert row["mmcs_absolute"] == pytest.approx(
            cosines.abs().max(1).values.mean().item(), abs=1e-6
        )
        assert row["hungarian"] <= max(row["mmcs"], row["mmcs_truth"]) + 1e-6


def test_neighbours_are_the_next_size_and_the_other_seed(run: Run):
    found = neighbours(run)
    pairs = {(int(r.member), int(r.other), str(r.kind)) for r in found.itertuples()}
    assert pairs == {
        (0, 2, "larger"),
        (1, 3, "larger"),
        (0, 1, "seed"),
        (1, 0, "seed"),
        (2, 3, "seed"),
        (3, 2, "seed"),
    }
    assert found["mmcs"].between(-1, 1).all()


def test_rows_without_a_truth_say_so(tmp_path: Path):
    ensemble_sae.ChunkStore.write(tmp_path / "rows", torch.randn(600, 4), chunk_rows=200)
    plain = ensemble_sae.run_sweep(
        [{"signature": "tied", "n_dict": 4, "l1": 1e-2}],
        activations={"store": str(tmp_path / "rows")},
        train={"batch_size": 50},
        run=tmp_path / "run",
        devices="cpu:1",
        threads=1,
    )
    assert ensemble_sae.histories(plain).reference == "final"
    for refused in (
        lambda: recovery(plain),
        lambda: ensemble_sae.histories(plain, reference="truth"),
    ):
        with pytest.raises(UserError, match="Nobody knows the true features"):
            refused()


def test_a_lost_file_of_the_truth_is_named(run: Run, tmp_path: Path):
    shutil.copytree(run.path, tmp_path / "run")
    (path,) = (tmp_path / "run/truth").iterdir()
    path.unlink()
    with pytest.raises(UserError, match=r"missing") as error:
        ensemble_sae.histories(ensemble_sae.load(tmp_path / "run"))
    assert path.name in str(error.value)
