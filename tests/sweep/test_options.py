"""Signatures' options, dynamics and starts as axes: what becomes of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import START, Read

from ensemble_sae.config.dynamics import DYNAMICS, Dynamics
from ensemble_sae.errors import UserError
from ensemble_sae.signatures import BUILTIN, hyperparameters
from ensemble_sae.sweep import as_rows, groups_of
from ensemble_sae.sweep.schema import Train


def grid(signature: str, *lines: str) -> str:
    """A grid of members of 16 features."""
    names = ", ".join(f'"{name}"' for name in signature.split())
    return "\n".join([f"[[grid]]\nsignature = [{names}]", "n_dict = 16", *lines, ""])


def train(*lines: str) -> str:
    return "\n".join(["[train]", *lines, grid("tied")])


# --- what is allowed


@pytest.mark.parametrize("name", BUILTIN)
def test_every_signature_has_members_with_its_defaults(read: Read, name: str) -> None:
    hook = {"transcoder": "resid -> mlp", "crosscoder": "resid + mlp"}.get(name, "resid")
    _, (member,) = read(START + grid(name, f'hook = "{hook}"'))
    defaults = hyperparameters(BUILTIN[name])
    assert member.hyperparameters == defaults | dict.fromkeys(defaults.keys() & {"k"}, 16)
    kinds = {k: type(v) for k, v in member.hyperparameters.items()}
    assert kinds == {k: type(v) for k, v in defaults.items()}
    assert member.dynamics.keys() == DYNAMICS - {"lr", "grad_clip"}


def test_numbers_share_a_group_and_structure_splits_it(read: Read) -> None:
    numbers = "k = [4, 8]", "lr = [0.1, 0.2]", "aux_weight = [0.1, 0.2]"
    _, members = read(START + grid("topk", *numbers))
    assert [len(group.members) for group in groups_of(members)] == [8]
    structure = 'centring = ["none", "mean"]', "whitening = [false, true]", "k = [4, 8]"
    _, members = read(START + grid("topk", *structure))
    groups = groups_of(members)
    found = {
        (g.members[0].hyperparameters["centring"], g.members[0].hyperparameters["whitening"]): [
            m.hyperparameters["k"] for m in g.members
        ]
        for g in groups
    }
    assert found == {(c, w): [4.0, 8.0] for c in ("none", "mean") for w in (False, True)}
    assert len({group.name for group in groups}) == 4
    _, members = read(START + grid("fista", "iterations = [2, 3]", "l1 = [0.1, 0.2]"))
    assert [len(group.members) for group in groups_of(members)] == [2, 2]


def test_starts_and_dynamics_are_axes_of_one_group(read: Read) -> None:
    init = 'init = ["signature", {kind = "centroid", rare = 0.05}, "rows"]'
    axes = init, "target_l0 = [5, 10]", "ema = [0.0, 0.99]", "grad_clip = [1, 2.5]"
    _, members = read(START + grid("tied", *axes))
    assert len(members) == 24
    (group,) = groups_of(members)
    assert group.name == "tied-n16"
    assert [m.init for m in members[::8]] == [
        {"kind": "signature", "rare": 0.05},
        {"kind": "centroid", "rare": 0.05},
        {"kind": "rows", "rare": 0.05},
    ]
    assert {m.dynamics["target_l0"] for m in members} == {5.0, 10.0}
    assert {m.dynamics["ema"] for m in members} == {0.0, 0.99}
    names = [m.name for m in members]
    assert names[0] == "tied l1=1.0e-3 r=0.5 bd=0 grad_clip=1 init=signature ema=0 L0=5"
    assert "grad_clip=2.5 init=centroid:0.05 ema=0.99 L0=10" in names[15]
    assert len(set(names)) == 24
    assert max(map(len, names)) < 100


def test_names_leave_out_what_is_the_same_for_all_of_a_signature(read: Read) -> None:
    grids = grid("tied", 'resample = ["none", "loss"]'), grid("topk", "k = [4, 8]", "ema = 0.9")
    _, members = read(START + "".join(grids) + grid("affine", "target_l0 = 5", "grad_clip = 1"))
    assert [m.name for m in members] == [
        "tied l1=1.0e-3 r=0.5 bd=0 grad_clip=none resample=none",
        "tied l1=1.0e-3 r=0.5 bd=0 grad_clip=none resample=loss",
        "topk k=4 r=0.5 grad_clip=none",
        "topk k=8 r=0.5 grad_clip=none",
        "affine l1=1.0e-3 r=0.5 grad_clip=1",
    ]


def test_dynamics_of_train_are_those_of_members_that_say_nothing(read: Read) -> None:
    text = '[train]\nema = 0.9\nresample = "loss"\nlr_schedule = "cosine"\ninit = "rows"\n'
    text += grid("tied", "ema = [0.5, 0.9]") + grid("topk", 'resample = "none"', 'init = "svd"')
    _, members = read(START + text)
    assert [m.dynamics["ema"] for m in members] == [0.5, 0.9, 0.9]
    assert [m.dynamics["resample"] for m in members] == ["loss", "loss", "none"]
    assert [m.init["kind"] for m in members] == ["rows", "rows", "svd"]
    assert {m.dynamics["lr_schedule"] for m in members} == {"cosine"}
    shown = {key for row in as_rows(members) for key in row} & DYNAMICS
    assert shown == {"lr", "grad_clip", "ema", "resample", "lr_schedule"}


def test_what_is_written_of_a_sweep_can_be_read_again() -> None:
    """A run's `sweep.json` has every key, also those that only another optimiser has."""
    for given in ({}, {"optimiser": "sgd", "momentum": 0.5}, {"optimiser": "adamw"}):
        made = Train.model_validate(given)
        assert Train.model_validate(made.model_dump(mode="json")) == made
    every = Dynamics.model_validate({}).model_dump(mode="json")
    assert Dynamics.model_validate(every) == Dynamics.model_validate({})


# --- what is refused: the text, and words that the message must have

FREEZING = ["freeze_from = 0, resample_until = 100000", "freeze_from >= resample_until"]
WHOLE = "a whole number from 1 to"
BAD = {
    "k > n_dict": (grid("topk", "k = [8, 17]"), ["grid.k", "17", f"{WHOLE} 16 (n_dict = 16)"]),
    "k = 0": (grid("topk", "k = 0"), ["grid.k", "0", f"{WHOLE} 16"]),
    "k = 2.5": (grid("batchtopk", "k = 2.5"), ["grid.k", "2.5", f"{WHOLE} 16"]),
    "k = true": (grid("matryoshka", "k = true"), ["grid.k", "True", f"{WHOLE} 16"]),
    "p = 0": (grid("lp", "p = [0.5, 0]"), ["grid.p", "0", "> 0, up to 1"]),
    "p = -1": (grid("lp", "p = -1"), ["grid.p", "-1", "> 0, up to 1"]),
    "p = 1.01": (grid("lp", "p = 1.01"), ["grid.p", "1.01", "> 0, up to 1"]),
    "iterations = 0": (grid("fista", "iterations = 0"), ["grid.iterations", f"{WHOLE} 1,000"]),
    "iterations = 2.5": (grid("lista", "iterations = 2.5"), ["grid.iterations", "2.5", WHOLE]),
    "alpha = 0": (grid("spike_slab_vae", "alpha = 0"), ["grid.alpha", "0", "> 0, up to 0.5"]),
    "prefixes = 21": (grid("matryoshka", "prefixes = 21"), ["grid.prefixes", "21", "to 20"]),
    "noise = -1": (grid("noise", "noise = -1"), ["grid.noise", "-1", ">= 0"]),
    "centring": (
        grid("tied", 'centring = ["none", "meen"]'),
        ["grid.centring", "'meen'", "learned, mean, none", "did you mean 'mean'"],
    ),
    "centring = true": (grid("tied", "centring = true"), ["grid.centring", "True", "mean"]),
    "whitening = 1": (grid("tied", "whitening = 1"), ["grid.whitening", "1", "true, false"]),
    "revive": (grid("topk", 'revive = "auxk"'), ["grid.revive", "did you mean 'aux_k'"]),
    "aux_k = 0": (grid("topk", "aux_k = 0"), ["grid.aux_k", "0", WHOLE]),
    "another's option": (
        grid("tied fista", 'revive = "aux_k"'),
        ["grid.revive", "'fista' has no 'revive'", "[[grid]] of its own"],
    ),
    "l1 of topk": (grid("topk", "l1 = 0.1"), ["grid.l1", "'topk' has no 'l1'"]),
    "target > n_dict": (grid("tied", "target_l0 = 17"), ["grid.target_l0", "17", "up to 16"]),
    "target of all > n_dict": (train("target_l0 = 17"), ["grid.target_l0", "17", "up to 16"]),
    "target = 0": (grid("tied", "target_l0 = 0"), ["grid.target_l0", "0", "greater than 0"]),
    "target without a penalty": (
        grid("topk", "target_l0 = 5"),
        ["grid.target_l0", "topk with neither l1 nor l0_coefficient", "above 0"],
    ),
    "target without l1": (
        grid("tied", "target_l0 = 5", "l1 = [0.1, 0]"),
        ["grid.target_l0", "tied with l1 = 0", "above 0"],
    ),
    "target without a coefficient": (
        grid("jumprelu", "target_l0 = 5", "l0_coefficient = 0"),
        ["grid.target_l0", "jumprelu with l0_coefficient = 0"],
    ),
    "freezing while resampling": (
        train("freeze_every = 10", 'resample = "loss"'),
        ["train.freeze_from", *FREEZING],
    ),
    "the same in a grid": (
        grid("tied", "freeze_every = [0, 10]", 'resample = "loss"'),
        ["grid.freeze_from", *FREEZING],
    ),
    "the same in both": (
        '[train]\nresample = "random"\n' + grid("tied", "freeze_every = 10"),
        ["grid.freeze_from", *FREEZING, 'resample = "none"'],
    ),
    "unknown start": (grid("tied", 'init = "rwos"'), ["grid.init", "'rwos'", "mean 'rows'"]),
    "unknown start of all": (train('init = "rwos"'), ["train.init", "'rwos'", "mean 'rows'"]),
    "rare = 0": (
        grid("tied", 'init = ["rows", {kind = "centroid", rare = 0}]'),
        ["grid.init.rare", "found:   0", "above 0 and at most 1"],
    ),
    "rare = 1.5": (
        train('init = {kind = "mean", rare = 1.5}'),
        ["train.init.rare", "1.5", "above 0 and at most 1"],
    ),
    "rare of none": (
        grid("tied", 'init = {kind = "rows", rare = 0.1}'),
        ["grid.init.rare", "'rows' has no rare", "mean, centroid, outlier"],
    ),
    "start without a kind": (
        grid("tied", "init = {rare = 0.1}"),
        ["grid.init", "{'rare': 0.1}", 'kind = "centroid"'],
    ),
    "unknown optimiser": (
        train('optimiser = "adma"'),
        ["train.optimiser", "'adma'", "'adam', 'adamw', 'radam', 'rmsprop' or 'sgd'"],
    ),
    "optimiser as an axis": (grid("tied", 'optimiser = "sgd"'), ["grid.optimiser", "has no"]),
    "decay of adam": (
        train("weight_decay = 0.1"),
        ["train.optimiser", "Only adamw has a weight_decay", "adam", 'optimiser = "adamw"'],
    ),
    "momentum of radam": (
        train('optimiser = "radam"', "momentum = 0.5"),
        ["train.optimiser", "Only sgd has a momentum", "radam", 'optimiser = "sgd"'],
    ),
    "unknown schedule": (
        train('lr_schedule = "cosin"'),
        ["train.lr_schedule", "'cosin'", "'constant', 'linear' or 'cosine'"],
    ),
    "unknown schedule in a grid": (
        grid("tied", 'l1_schedule = ["constant", "cosin"]'),
        ["grid.l1_schedule", "'cosin'", "'linear'"],
    ),
    "ema = 1": (grid("tied", "ema = [0.0, 1]"), ["grid.ema", "1", "less than 1"]),
    "ema = 1 of all": (train("ema = 1.0"), ["train.ema", "1.0", "less than 1"]),
    "ema as text": (grid("tied", 'ema = "0.9"'), ["grid.ema", "'0.9'", "a valid number"]),
    "more steps than can be counted": (
        grid("tied", "dead_after = 1" + "0" * 400),
        ["grid.dead_after", "less than or equal to"],
    ),
    "dynamics of a member": (
        '[[members]]\nsignature = "tied"\nn_dict = 8\nresample = "some"\n',
        ["members[0].resample", "'some'", "'none', 'loss' or 'random'"],
    ),
    "nearly a dynamic": (
        grid("tied", "freez_every = 3"),
        ["grid.freez_every", "did you mean 'freeze_every'"],
    ),
    "transcoder without a target": (
        grid("transcoder"),
        ["grid.hook", "'transcoder' predicts a target", "'resid'", 'hook = "A -> B"'],
    ),
    "crosscoder on one hook": (
        grid("crosscoder"),
        ["grid.hook", "'crosscoder' reads 2 hook points or more", "'resid'", '"A + B"'],
    ),
    "a target for others": (
        grid("topk", 'hook = "resid -> mlp"'),
        ["grid.hook", "'topk' reconstructs what it reads", "transcoder"],
    ),
    "twins of a start": (
        grid("tied", 'init = ["mean", {kind = "mean", rare = 0.05}]'),
        ["Members 0 and 1 are the same"],
    ),
    "twins of an option": (
        grid("tied", 'centring = ["none", "none"]'),
        ["Members 0 and 1 are the same"],
    ),
    "twins of a dynamic": (
        "[train]\nema = 0.5\n" + grid("tied") + grid("tied", "ema = 0.5"),
        ["Members 0 and 1 are the same"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_explained(read: Read, tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    text = text if text.count("[[grid]]") > 1 else text.replace("[[grid]]", "[grid]")
    with pytest.raises(UserError) as error:
        read(START + text)
    message = str(error.value)
    assert [word for word in [str(tmp_path / "mine.toml"), *words] if word not in message] == []
    assert len(message) < 1500
