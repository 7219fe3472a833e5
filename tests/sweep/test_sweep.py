"""From a sweep file to members: what is allowed, what it becomes, and how the rest is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from reading import ONE, START, Read

from ensemble_sae.config import builtin
from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.errors import UserError
from ensemble_sae.sweep import Group, Member, expand, groups_of, load_sweep
from ensemble_sae.sweep import grid as grids

# --- what ships


@pytest.mark.parametrize("name", builtin.names("sweeps"))
def test_every_built_in_sweep_expands(name: str) -> None:
    sweep, where = load_sweep(name)
    if sweep.activations.recipe is None:
        widths = {sweep.activations.hook or "rows": 256}
    else:
        widths = dict.fromkeys(load_recipe(sweep.activations.recipe).hooks, 512)
    members = expand(sweep, widths, where)
    assert sweep.name == name
    assert len(members) > 1
    assert [m.id for m in members] == list(range(len(members)))
    assert len({m.name for m in members}) == len(members)
    assert sum(len(group.members) for group in groups_of(members)) == len(members)


@pytest.mark.parametrize("name", builtin.names("activations"))
def test_every_built_in_recipe_is_valid(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_default_sweep_is_large() -> None:
    sweep, where = load_sweep("default")
    assert len(expand(sweep, {sweep.activations.hook: 128}, where)) >= 200


# --- what is allowed


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        (0.1, [0.1]),
        ([1, 2], [1, 2]),
        (["tied"], ["tied"]),
        ({"logspace": [-4, -2, 3]}, [1e-4, 1e-3, 1e-2]),
        ({"logspace": [-3.5, -2, 4]}, [0.000316227766017, 0.001, 0.00316227766017, 0.01]),
        ({"linspace": [0, 1, 5]}, [0, 0.25, 0.5, 0.75, 1]),
        ({"linspace": [3, 9, 1]}, [3.0]),
    ],
)
def test_axes(axis: object, values: list[object]) -> None:
    assert grids.axis_values(axis, "here") == values


def test_the_last_axis_moves_fastest_and_grids_add_up(read: Read) -> None:
    _, members = read(
        START
        + '[[grid]]\nsignature = ["tied", "untied"]\nn_dict = 8\nl1 = [0.1, 0.2]\n'
        + '[[grid]]\nsignature = "affine"\ndict_ratio = [0.5, 4]\nhook = "mlp"\n'
        + '[[members]]\nsignature = "tied"\nn_dict = 5\nseed = 7\nlr = 0.5\ngrad_clip = 1\n'
    )
    assert [(m.signature, m.n_dict, m.hyperparameters["l1"]) for m in members] == [
        ("tied", 8, 0.1),
        ("tied", 8, 0.2),
        ("untied", 8, 0.1),
        ("untied", 8, 0.2),
        ("affine", 32, 1e-3),
        ("affine", 256, 1e-3),
        ("tied", 5, 1e-3),
    ]
    assert (members[0].dict_ratio, members[0].lr, members[0].grad_clip) == (0.25, 1e-3, None)
    assert (members[5].hook, members[5].d_activation, members[5].dict_ratio) == ("mlp", 64, 4)
    assert (members[6].seed, members[6].lr, members[6].grad_clip) == (7, 0.5, 1.0)
    assert members[6].as_row()["bias_decay"] == 0.0
    assert [Member.from_row(asdict(m)) for m in members] == members


def test_names_say_what_differs(read: Read) -> None:
    _, members = read(
        START + '[grid]\nsignature = "tied"\ndict_ratio = 2\nl1 = [1e-3, 0.02]\nseed = [0, 1]\n'
    )
    assert [m.name for m in members] == [
        "tied l1=1.0e-3 r=2 bd=0 seed=0",
        "tied l1=1.0e-3 r=2 bd=0 seed=1",
        "tied l1=2.0e-2 r=2 bd=0 seed=0",
        "tied l1=2.0e-2 r=2 bd=0 seed=1",
    ]


def test_members_of_close_l1_have_names_of_their_own(read: Read) -> None:
    grid = '[grid]\nsignature = "tied"\nn_dict = [30, 31]\nl1 = {linspace = [0.01, 0.011, 30]}\n'
    _, members = read(START + grid, widths={"resid": 1_000_000})
    assert len({m.name for m in members}) == 60


def test_the_only_hook_needs_no_name(read: Read) -> None:
    _, members = read(f'[activations]\nstore = "s"\n{ONE}', widths={"mlp": 8})
    assert members[0].hook == "mlp"


def test_expressions_over_hook_points(read: Read) -> None:
    _, members = read(
        START
        + '[[grid]]\nsignature = "tied"\ndict_ratio = 2\nhook = ["mlp", "resid+mlp"]\n'
        + '[[grid]]\nsignature = "kinds:Reads2"\nn_dict = 8\nhook = "mlp + resid"\n'
        + '[[grid]]\nsignature = "kinds:Predicts"\ndict_ratio = 2\n'
        + 'hook = ["resid->mlp", "mlp + resid -> resid"]\n'
    )
    found = [(m.hook, m.d_activation, m.widths, m.d_target, m.n_dict) for m in members]
    assert found == [
        ("mlp", 64, (64,), 0, 128),
        ("resid + mlp", 96, (32, 64), 0, 192),
        ("mlp + resid", 96, (64, 32), 0, 8),
        ("resid -> mlp", 32, (32, 64), 64, 64),
        ("mlp + resid -> resid", 96, (64, 32, 32), 32, 192),
    ]
    assert [group.name for group in groups_of(members)] == [
        "tied-n128-mlp",
        "tied-n192-resid_mlp",
        "Reads2-n8-mlp_resid",
        "Predicts-n64-resid_-_mlp",
        "Predicts-n192-mlp_resid_-_resid",
    ]
    assert [Member.from_row(json.loads(json.dumps(asdict(m)))) for m in members] == members
    old = {name: value for name, value in asdict(members[0]).items() if name != "widths"}
    assert Member.from_row(old).widths == ()
    assert Member.from_row(old).d_target == 0


def test_an_expression_may_be_the_default(read: Read) -> None:
    text = f'[activations]\nstore = "s"\nhook = "mlp +resid"\n{ONE}'
    assert read(text)[1][0].hook == "mlp + resid"


def test_groups_are_members_of_one_shape(read: Read) -> None:
    _, members = read(
        START + '[grid]\nsignature = ["tied", "untied"]\nhook = ["resid", "mlp"]\n'
        "dict_ratio = [1, 2]\nl1 = [0.1, 0.2]\n"
    )
    groups = groups_of(members)
    assert len(groups) == len({group.name for group in groups}) == 8
    for group in groups:
        shapes = {(m.signature, m.hook, m.d_activation, m.n_dict) for m in group.members}
        assert shapes == {(group.signature, group.hook, group.d_activation, group.n_dict)}
        assert [m.id for m in group.members] == sorted(m.id for m in group.members)
    assert groups[0].name == "tied-n32-resid"
    apart = groups_of(members, {m.id: m.id % 2 for m in members})
    assert len(apart) == len({group.name for group in apart}) == 16
    assert isinstance(apart[0], Group)


def test_members_that_differ_in_l1_alone_are_one_group(read: Read) -> None:
    _, members = read(START + ONE + "l1 = {logspace = [-4, -2, 5]}\nlr = [0.1, 0.2]\n")
    assert [group.name for group in groups_of(members)] == ["tied-n64"]


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("train.batch_size=4096", lambda s: s.train.batch_size == 4096),
        ("train.lr = 1e-4", lambda s: s.train.lr == 1e-4),
        ("train.betas=[0.8, 0.9]", lambda s: s.train.betas == (0.8, 0.9)),
        ("activations.store=elsewhere", lambda s: s.activations.store == "elsewhere"),
        ('activations.store="else=where"', lambda s: s.activations.store == "else=where"),
        ("name=other", lambda s: s.name == "other"),
        ("grid.l1=[1e-3, 1e-2]", lambda s: s.grid[0]["l1"] == [1e-3, 1e-2]),
    ],
)
def test_settings_override_the_file(read: Read, setting: str, found: Callable) -> None:
    assert found(read(START + ONE, setting)[0])


def test_the_smaller_version_comes_before_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    smaller = '[quick]\n"train.epochs" = 2\n"grid.l1" = [0.1]\n"train.lr" = 0.5\n'
    path.write_text(START + ONE + "l1 = [0.1, 0.2]\n" + smaller, encoding="utf-8")
    whole, _ = load_sweep(path)
    quick, _ = load_sweep(path, ("train.lr=0.25",), quick=True)
    assert quick.name == f"{whole.name}-quick"
    assert (whole.train.epochs, quick.train.epochs) == (1, 2)
    assert (whole.grid[0]["l1"], quick.grid[0]["l1"]) == ([0.1, 0.2], [0.1])
    assert quick.train.lr == 0.25


@pytest.mark.parametrize("quick", ["", "quick = 3\n", "[quick]\n"])
def test_without_a_smaller_version_it_is_refused(tmp_path: Path, quick: str) -> None:
    path = tmp_path / "mine.toml"
    top, rest = (quick, "") if quick.startswith("quick =") else ("", quick)
    path.write_text(top + START + ONE + rest, encoding="utf-8")
    with pytest.raises(UserError, match=r"no smaller version(.|\n)*mine.toml, \[quick\]"):
        load_sweep(path, quick=True)


# --- what is refused: the text, and words that the message must have


def grid(line: str) -> str:
    return START + ONE + line + "\n"


def alone(line: str) -> str:
    return START + "[grid]\n" + line + "\n"


NUMBER = "a finite number >= 0"
BAD = {
    "unknown section": (START + ONE + "[trian]\nx = 1\n", ["'trian'", "did you mean 'train'"]),
    "unknown key": (START + "[train]\nbatchsize = 1\n" + ONE, ["batchsize", "mean 'batch_size'"]),
    "unknown in activations": (
        '[activations]\nstore = "s"\nhok = "resid"\n' + ONE,
        ["activations.hok", "did you mean 'hook'"],
    ),
    "unknown axis": (
        grid("bias_dcay = 1"),
        ["grid.bias_dcay", "has no", "did you mean 'bias_decay'"],
    ),
    "no members": (START, ["A sweep needs members", "[grid]"]),
    "empty grid": (START + "[grid]\n", ["needs a signature"]),
    "no activations": (ONE, ["activations", "required"]),
    "two sources": (
        '[activations]\nstore = "s"\nrecipe = "r"\n' + ONE,
        ["activations", "both", "recipe = "],
    ),
    "no source": ("[activations]\n" + ONE, ["activations", "neither"]),
    "bad normalise": (
        '[activations]\nstore = "s"\nnormalise = "yes"\n' + ONE,
        ["activations.normalise", "'yes'", "'standard'"],
    ),
    "negative l1": (grid("l1 = -1"), ["grid.l1", "-1", NUMBER]),
    "NaN l1": (grid("l1 = nan"), ["grid.l1", "nan", NUMBER]),
    "infinite l1": (grid("l1 = [0.1, inf]"), ["grid.l1", "inf", NUMBER]),
    "text l1": (grid('l1 = "0.1"'), ["grid.l1", "'0.1'", NUMBER]),
    "bool l1": (grid("l1 = true"), ["grid.l1", "True", NUMBER]),
    "date l1": (grid("l1 = 2020-01-01"), ["grid.l1", NUMBER]),
    "nested l1": (grid("l1 = [[0.1]]"), ["grid.l1", "[0.1]", NUMBER]),
    "huge l1": (grid("l1 = 1" + "0" * 400), ["grid.l1", NUMBER]),
    "lr 0": (grid("lr = 0"), ["grid.lr", "> 0"]),
    "lr text": (START + '[train]\nlr = "fast"\n' + ONE, ["train.lr", "'fast'"]),
    "lr bool": (START + "[train]\nlr = true\n" + ONE, ["train.lr", "True"]),
    "lr infinite": (START + "[train]\nlr = inf\n" + ONE, ["train.lr", "inf"]),
    "lr beyond float32": (grid("lr = 1e300"), ["grid.lr", "1e+300"]),
    "clip 0": (grid("grad_clip = 0"), ["grid.grad_clip", "> 0"]),
    "batch 0": (START + "[train]\nbatch_size = 0\n" + ONE, ["train.batch_size", "0", "greater"]),
    "batch 1.5": (START + "[train]\nbatch_size = 1.5\n" + ONE, ["train.batch_size", "1.5"]),
    "batch bool": (START + "[train]\nbatch_size = true\n" + ONE, ["train.batch_size", "True"]),
    "batch text": (START + '[train]\nbatch_size = "8"\n' + ONE, ["train.batch_size", "'8'"]),
    "betas": (START + "[train]\nbetas = [0.9, 1]\n" + ONE, ["train.betas", "0 <= beta < 1"]),
    "betas text": (START + '[train]\nbetas = ["0.9", 0.9]\n' + ONE, ["train.betas.0", "'0.9'"]),
    "one beta": (START + "[train]\nbetas = [0.9]\n" + ONE, ["train.betas"]),
    "kernel": (START + '[train]\nkernel = "fast"\n' + ONE, ["train.kernel", "'generic'"]),
    "seed -1": (grid("seed = -1"), ["grid.seed", "-1", ">= 0"]),
    "seed 0.5": (grid("seed = 0.5"), ["grid.seed", "whole"]),
    "no size": (alone('signature = "tied"'), ["grid", "neither", "dict_ratio", "n_dict"]),
    "two sizes": (grid("n_dict = 8"), ["grid", "both n_dict and dict_ratio"]),
    "ratio too small": (
        alone('signature = "tied"\ndict_ratio = 0.01'),
        ["grid.dict_ratio", "0.01", "features", "0.03125"],
    ),
    "ratio too large": (alone('signature = "tied"\ndict_ratio = 1e307'), ["grid.dict_ratio"]),
    "ratio 0": (alone('signature = "tied"\ndict_ratio = 0'), ["grid.dict_ratio", "> 0"]),
    "n_dict 0": (alone('signature = "tied"\nn_dict = 0'), ["grid.n_dict", "0", "from 1"]),
    "n_dict 1.5": (alone('signature = "tied"\nn_dict = 1.5'), ["grid.n_dict", "1.5"]),
    "n_dict bool": (alone('signature = "tied"\nn_dict = true'), ["grid.n_dict", "True"]),
    "n_dict huge": (alone('signature = "tied"\nn_dict = 1' + "0" * 400), ["grid.n_dict"]),
    "unknown signature": (
        alone('signature = "tide"\nn_dict = 8'),
        ["grid.signature", "'tide'", "did you mean 'tied'"],
    ),
    "number as signature": (alone("signature = [3]\nn_dict = 8"), ["grid.signature", "'3'"]),
    "own signature missing": (
        alone('signature = "nowhere:Sae"\nn_dict = 8'),
        ["grid.signature", "cannot be imported", "nowhere"],
    ),
    "unknown hook": (grid('hook = "resdi"'), ["grid.hook", "'resdi'", "did you mean 'resid'"]),
    "list as hook": (grid('hook = [["resid"]]'), ["grid.hook", "['resid']", "mlp"]),
    "unknown point": (
        grid('hook = "resid + mpl"'),
        ["grid.hook", "'mpl'", "did you mean 'mlp'"],
    ),
    "half an expression": (grid('hook = "resid +"'), ["grid.hook", "'resid +'", "A + B -> C"]),
    "two arrows": (grid('hook = "resid -> mlp -> resid"'), ["grid.hook", "one arrow"]),
    "a point twice": (grid('hook = "resid + resid"'), ["grid.hook", "twice"]),
    "a target for tied": (
        grid('hook = "resid -> mlp"'),
        ["grid.hook", "'tied' reconstructs what it reads", "'resid -> mlp'"],
    ),
    "no target": (
        alone('signature = "kinds:Predicts"\nn_dict = 8'),
        ["grid.hook", "'kinds:Predicts' predicts a target", "A -> B"],
    ),
    "too few points": (
        alone('signature = "kinds:Reads2"\nn_dict = 8'),
        ["grid.hook", "'kinds:Reads2' reads 2 hook points or more", '"A + B"'],
    ),
    "no hook": ('[activations]\nstore = "s"\n' + ONE, ["grid.hook", "say which", "resid, mlp"]),
    "another's axis": (
        alone('signature = ["tied", "affine"]\nn_dict = 8\nbias_decay = 0.1'),
        ["grid.bias_decay", "'affine' has no 'bias_decay'", "[[grid]] of its own"],
    ),
    "twins": (grid("l1 = [0.1, 0.1]"), ["Members 0 and 1 are the same", "seed = [0, 1]"]),
    "twins of int and float": (
        alone('signature = "tied"\nn_dict = 8\nl1 = [1, 1.0]'),
        ["Members 0 and 1 are the same"],
    ),
    "empty axis": (grid("l1 = []"), ["grid.l1", "without values", "logspace"]),
    "logspace of two": (grid("l1 = {logspace = [-4, -2]}"), ["grid.l1", "count"]),
    "logspace of 0": (grid("l1 = {logspace = [-4, -2, 0]}"), ["grid.l1", "count from 1"]),
    "logspace of 2.5": (grid("l1 = {logspace = [-4, -2, 2.5]}"), ["grid.l1"]),
    "logspace of text": (grid('l1 = {logspace = ["-4", -2, 2]}'), ["grid.l1", "'-4'"]),
    "logspace of bools": (grid("l1 = {logspace = [true, false, true]}"), ["grid.l1", "True"]),
    "logspace to infinity": (grid("l1 = {logspace = [300, 400, 3]}"), ["grid.l1", NUMBER]),
    "logspace of NaN": (grid("l1 = {logspace = [nan, 1, 3]}"), ["grid.l1", NUMBER]),
    "logspace of huge": (grid("l1 = {logspace = [1" + "0" * 400 + ", 1, 3]}"), ["grid.l1"]),
    "logspace of many": (grid("l1 = {logspace = [1, 2, 1000000000000]}"), ["grid.l1", "100,000"]),
    "geomspace": (grid("l1 = {geomspace = [1, 2, 3]}"), ["grid.l1", "geomspace", "linspace"]),
    "two spaces": (grid("l1 = {logspace = [1, 2, 3], linspace = [1, 2, 3]}"), ["grid.l1"]),
    "grid too large": (
        grid("l1 = {linspace = [0, 1, 1000]}\nlr = {linspace = [1, 2, 1000]}"),
        ["grid", "1,000,000", "100,000"],
    ),
    "axis in members": (
        START + '[[members]]\nsignature = "tied"\nn_dict = 8\nl1 = [0.1, 0.2]\n',
        ["members[0].l1", "[0.1, 0.2]"],
    ),
    "second grid": (
        START + '[[grid]]\nsignature = "tied"\nn_dict = 8\n[[grid]]\nn_dict = 9\n',
        ["grid[1]", "needs a signature"],
    ),
    "grid a number": ("grid = 3\n" + START, ["grid", "3", "list"]),
    "bad name": ('name = "../x"\n' + START + ONE, ["name", "'../x'"]),
    "not TOML": ("[grid\n", ["not valid TOML", "line 1"]),
    "deep": ("a = " + "[" * 5000, ["not valid TOML"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sweeps_are_explained(read: Read, tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    with pytest.raises(UserError) as error:
        read(text)
    message = str(error.value)
    assert [word for word in [str(tmp_path / "mine.toml"), *words] if word not in message] == []
    assert len(message) < 1500


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("", ["key=value", "''"]),
        ("train.lr", ["key=value", "'train.lr'"]),
        ("=3", ["key=value", "'=3'"]),
        ("train.batch_size=many", ["train.batch_size", "'many'"]),
        ("train.batch_size=", ["train.batch_size", "''"]),
        ("train.batch_size=true", ["train.batch_size", "True"]),
        ('train.batch_size="4096"', ["train.batch_size", "'4096'"]),
        ("train.batchsize=1", ["batchsize", "did you mean 'batch_size'"]),
        ("trian.lr=1", ["trian", "did you mean 'train'"]),
        ("train=3", ["train", "3"]),
        ("train..lr=3", ["Unknown key ''"]),
        ("train.lr.x=3", ["train.lr"]),
        ("activations.store.x=3", ["one key of one table", "str"]),
        ("train.lr=" + "[" * 5000, ["train.lr"]),
        ("name=a b", ["name", "'a b'"]),
    ],
)
def test_bad_settings_are_explained(read: Read, setting: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read(START + ONE, setting)
    assert [word for word in words if word not in str(error.value)] == []


def test_unknown_sweeps_list_the_known_ones() -> None:
    with pytest.raises(UserError, match="did you mean 'default'"):
        load_sweep("defualt")
    with pytest.raises(UserError, match=r"No such file in .*\n.*no\.toml"):
        load_sweep("no.toml")


def test_whatever_comes_in_only_user_errors_come_out(read: Read) -> None:
    """Random values in random places: a sweep or an explanation, never a crash."""
    draw = random.Random(0)
    keys = ["signature", "hook", "dict_ratio", "n_dict", "lr", "grad_clip", "seed", "l1", "x"]
    scalars = ["0", "-1", "1e400", "nan", "true", '""', '"tied"', "1979-05-27", "07:32:00"]
    scalars += ["[]", "{}", "[[]]", "{logspace = 3}", "{linspace = [0, inf, 3]}", "1e-320"]
    scalars += ["9" * 50, '"a:b"', '":"', "[1, [2]]", '{a = "b"}', "0x7fffffffffffffff"]
    fine = {"signature": '"tied"', "n_dict": "8"}
    for _ in range(600):
        chosen = fine | {key: draw.choice(scalars) for key in draw.sample(keys, 2)}
        table = draw.choice(["[grid]", "[[grid]]", "[[members]]", "[train]", "[activations]"])
        text = START + ONE if table == "[train]" else START
        text = "" if table == "[activations]" else text
        text += f"{table}\n" + "".join(f"{key} = {value}\n" for key, value in chosen.items())
        try:
            read(text)
        except UserError as error:
            assert str(error)  # noqa: PT017
