"""A run on the disk, written by the real writers: what it gives, and how its damage is told."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from making import equal, member, rows
from torch.testing import assert_close

import ensemble_sae
from ensemble_sae.engine.results import make_table, write_members, write_table
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import write_json
from ensemble_sae.run import Checkpoints, Layout, Position, load
from ensemble_sae.run.checkpoint import write_part
from ensemble_sae.run.layout import SCHEMA_VERSION, numbered
from ensemble_sae.run.metrics import MetricsLog
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.sweep import Sweep, expand, groups_of
from ensemble_sae.train import FunctionalEnsemble

D = 6
UNITS = {"resid": {"scale": 2.5, "shift": [1.0, -2.0, 3.0, 0.0, 0.5, -0.5]}}
SWEEP = Sweep.model_validate(
    {
        "name": "small",
        "activations": {"store": "s"},
        "grid": [
            {"signature": ["tied", "untied"], "n_dict": 9, "l1": [0.1, 0.2, 0.3]},
            {"signature": "affine", "dict_ratio": 2},
        ],
    }
)


def write(folder: Path) -> dict[int, tuple[dict, dict]]:
    """A whole run; returns what the members ended as."""
    layout = Layout(folder)
    members = expand(SWEEP, {"resid": D})
    groups, status = groups_of(members), {m.id: "trained" for m in members}
    with layout.locked():
        facts = {"sweep": SWEEP.model_dump(mode="json"), "stores": {}, "units": UNITS}
        write_json(layout.sweep, {"schema_version": SCHEMA_VERSION, **facts})
        write_json(layout.status, {"schema_version": SCHEMA_VERSION, "status": "complete"})
        write_members(layout, groups, status)
        checkpoints, parts, ended = Checkpoints(layout.checkpoints), {1: [], 3: []}, {}
        folders = {step: checkpoints.begin(step) for step in parts}
        for group in groups:
            pairs = [
                member(m.signature, D, m.n_dict, m.id, torch.float32, **m.hyperparameters)
                for m in group.members
            ]
            ensemble = FunctionalEnsemble.from_members(BUILTIN[group.signature], pairs)
            ids = [m.id for m in group.members]
            for step in (1, 2, 3):
                ensemble.step(rows(8, D, seed=step, dtype=torch.float32))
                if step in parts:
                    state, at = ensemble.state_dict(), Position(0, step)
                    parts[step].append(write_part(folders[step], group.name, ids, state, at))
            ended |= dict(zip(ids, ensemble.members(), strict=True))
        for step, written in parts.items():
            checkpoints.commit(folders[step], written, {"rounds": step})
        log = MetricsLog(layout.metrics)
        log.append({"round": 0, "member": m.id, "fvu": float("nan")} for m in members)
        log.append({"round": 1, "member": m.id, "fvu": 0.5} for m in members)
        found = [{"id": m.id, "fvu": 0.1 * m.id, "l0": 9.0 - m.id, "dead": 0.0} for m in members]
        write_table(layout, make_table(members, groups, status, found))
    return ended


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "run")
    return tmp_path / "run"


# --- what a run gives


def test_members_and_metrics_are_tables(folder: Path) -> None:
    run = load(folder)
    assert list(run.members.index) == list(range(7))
    assert run.members.loc[4, "signature"] == "untied"
    assert run.members["l1"].tolist() == [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 1e-3]
    assert run.members["n_dict"].tolist() == [9] * 6 + [12]
    assert set(run.members["status"]) == {"trained"}
    assert run.members["pareto"].all()
    assert len(run.metrics) == 14
    assert run.metrics["fvu"].isna().sum() == 7
    assert "7 members" in repr(run)
    assert ensemble_sae.load(folder).path == folder


def test_without_held_out_metrics_members_are_still_a_table(folder: Path) -> None:
    columns = set(load(folder).members.columns)
    Layout(folder).table.unlink()
    Layout(folder).metrics.unlink()
    run = load(folder)
    held_out = {"fvu", "l0", "dead", "min_cosine", "axis_share", "ultra_low_density", "flags"}
    assert set(run.members.columns) == columns - held_out - {"pareto"}
    assert run.members.loc[6, "group"] == "affine-n12"
    assert len(run.metrics) == 0


def test_saes_are_what_was_trained_in_the_units_of_the_model(tmp_path: Path) -> None:
    ended = write(tmp_path)
    run, x = load(tmp_path), rows(5, D, dtype=torch.float32) * 3
    shift, scale = torch.tensor(UNITS["resid"]["shift"]), UNITS["resid"]["scale"]
    for number, (params, buffers) in ended.items():
        sae = run.sae(number)
        equal(sae.params, params)
        equal(sae.buffers, buffers)
        code = sae.signature.encode(params, buffers, (x - shift) / scale)
        back = sae.signature.decode(params, buffers, code) * scale + shift
        assert_close(sae.encode(x), code)
        assert_close(sae.decode(code), back)
        assert_close(sae(x), back)
        assert_close(sae.dictionary.norm(dim=1), torch.ones(sae.config.n_dict))
        assert_close(sae.encode(x.view(5, 1, D)), code[:, None])
        assert_close(sae.encode(x[0]), code[0])
        assert_close(sae.encode(x.double()), code)
        assert_close(sae.encode(x.half()), code, rtol=1e-2, atol=1e-2)
        assert sae.config.id == number
        assert sae.to("cpu").device.type == "cpu"
        assert sae.config.name in repr(sae)


def test_rows_of_another_width_are_refused(folder: Path) -> None:
    sae = load(folder).sae(0)
    with pytest.raises(UserError, match=r"activations.*\n.*\[5, 7\]\n.*\[\.\.\., 6\]"):
        sae.encode(torch.ones(5, 7))
    with pytest.raises(UserError, match=r"code.*\n.*\[8\]\n.*\[\.\.\., 9\]"):
        sae.decode(torch.ones(8))


def test_select_by_columns(folder: Path) -> None:
    run = load(folder)
    assert [s.config.id for s in run.select(signature="tied")] == [0, 1, 2]
    assert [s.config.id for s in run.select(signature=["tied", "affine"], l1=[0.2, 1e-3])] == [1, 6]
    assert run.select(n_dict=5) == []
    with pytest.raises(UserError, match=r"no column 'sigature'(.|\n)*did you mean 'signature'"):
        run.select(sigature="tied")


def test_checkpoints_are_there_oldest_first(folder: Path) -> None:
    run = load(folder)
    first, last = run.checkpoints
    assert (first.step, last.step) == (1, 3)
    assert (first.position, last.position) == (Position(0, 1), Position(0, 3))
    assert last.notes == {"rounds": 3}
    last.verify()
    early, late = run.sae(2, checkpoint=first), run.sae(2)
    assert not torch.equal(early.params["decoder"], late.params["decoder"])
    state = last.stacked([2, 0])
    assert torch.equal(state["params/decoder"][0], late.params["decoder"])
    assert torch.equal(state["params/decoder"][1], run.sae(0).params["decoder"])
    assert int(state["step"]) == 3


def test_old_and_interrupted_checkpoints_are_removed(folder: Path) -> None:
    checkpoints = Checkpoints(folder / "checkpoints")
    (checkpoints.begin(7) / "half").write_text("half")
    assert len(checkpoints.all()) == 2
    checkpoints.clean(checkpoints.latest())
    checkpoints.prune(1)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-0000000003"]


def test_metrics_are_cut_at_a_round_and_after_a_crash(folder: Path) -> None:
    log = MetricsLog(Layout(folder).metrics)
    with open(log.path, "a") as file:
        file.write('{"round": 2, "mem')
    assert len(load(folder).metrics) == 14
    log.cut(1)
    assert load(folder).metrics["round"].tolist() == [0] * 7


def test_only_the_asked_member_is_read(folder: Path) -> None:
    """A checkpoint of 3 GiB on paper: the file is a hole, and stays one."""
    checkpoint = load(folder).checkpoints[-1]
    manifest = checkpoint.folder / "manifest.json"
    described, count, n = json.loads(manifest.read_text()), 3000, 2**18 // D
    size = 4 * count * n * D
    shape = {"dtype": "F32", "shape": [count, n, D], "data_offsets": [0, size]}
    header = json.dumps({"params/decoder": shape}).encode()
    path = checkpoint.folder / described["parts"][0]["file"]
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    described["parts"][0] |= {
        "bytes": path.stat().st_size,
        "members": list(range(100, 100 + count)),
        "tensors": {"params/decoder": f"[{count}, {n}, {D}] F32"},
    }
    write_json(manifest, described)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = load(folder).checkpoints[-1].member(2000)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert list(found["params/decoder"].shape) == [n, D]
    assert grown < 100e6
    assert size > 3e9


def test_a_run_is_locked_by_its_writer(folder: Path) -> None:
    with (
        Layout(folder).locked(),
        pytest.raises(UserError, match="Another process"),
        Layout(folder).locked(),
    ):
        pass


def test_folders_are_numbered(tmp_path: Path) -> None:
    names = [folder.name for folder, _ in zip(numbered(tmp_path / "a"), range(3), strict=False)]
    assert names == ["a", "a-2", "a-3"]


def test_missing_things_are_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run(.|\n)*no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no run(.|\n)*without sweep\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"no such member(.|\n)*99(.|\n)*0 to 6"):
        load(folder).sae(99)
    Checkpoints(folder / "checkpoints").prune(1)
    for path in (folder / "checkpoints").glob("*/*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint yet(.|\n)*--resume"):
        load(folder).sae(0)


# --- damage


def whole(folder: Path) -> None:
    """Do all that a reader does."""
    run = load(folder)
    run.metrics, run.members, repr(run)
    for checkpoint in run.checkpoints:
        for number in run.members.index:
            run.sae(int(number), checkpoint=checkpoint)(torch.ones(2, D))


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage to the values of a JSON file."""

    def damage(path: Path) -> None:
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return damage


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def renamed(old: bytes, new: bytes) -> Callable[[Path], object]:
    """A header that says something else, in a file of the same size."""
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new, 1))


def part(key: str, value: object) -> Callable[[Path], None]:
    return edit(lambda manifest: manifest["parts"][0].update({key: value}))


STEP = "checkpoints/step-0000000003"
MANIFEST, TENSORS = f"{STEP}/manifest.json", f"{STEP}/tied-n9-m0.safetensors"
DAMAGE = {  # file, damage, words that the message has beside the file's name
    "truncated": (TENSORS, cut, ["bytes", "wrong size"]),
    "empty": (TENSORS, text(""), ["0 bytes"]),
    "missing": (TENSORS, Path.unlink, ["no such file", "bytes"]),
    "header": (TENSORS, renamed(b'{"', b"{{"), ["truncated or damaged"]),
    "tensor's name": (
        TENSORS,
        renamed(b"params/decoder", b"params/decodes"),
        ["params/decoder", "no such tensor", "[3, 9, 6] F32"],
    ),
    "tensor's shape": (
        TENSORS,
        renamed(b"[3,9,6]", b"[9,3,6]"),
        ["[9, 3, 6] F32", "[3, 9, 6] F32"],
    ),
    "manifest cut": (MANIFEST, cut, ["not valid JSON"]),
    "manifest a list": (MANIFEST, text("[]"), ["schema_version"]),
    "manifest newer": (
        MANIFEST,
        edit(lambda m: m.update(schema_version=99)),
        ["newer version", "99", "up to 1", "upgrade"],
    ),
    "version a word": (MANIFEST, edit(lambda m: m.update(schema_version="1")), ["'1'", "whole"]),
    "no parts": (MANIFEST, edit(lambda m: m.pop("parts")), ["parts", "required"]),
    "zero parts": (MANIFEST, edit(lambda m: m.update(parts=[])), ["parts"]),
    "no notes": (MANIFEST, edit(lambda m: m.pop("notes")), ["notes", "required"]),
    "part a word": (MANIFEST, edit(lambda m: m.update(parts=["x"])), ["parts.0", "'x'"]),
    "members a word": (MANIFEST, part("members", "many"), ["parts.0.members", "'many'"]),
    "member gone": (MANIFEST, part("members", [0, 1, 99]), ["no member 2"]),
    "member too many": (MANIFEST, part("members", [0, 1, 2, 9]), ["[3", "4 on axis 0"]),
    "no members": (MANIFEST, part("members", []), ["parts.0.members"]),
    "bytes a word": (MANIFEST, part("bytes", "x"), ["parts.0.bytes", "'x'"]),
    "position a list": (MANIFEST, part("position", []), ["parts.0.position"]),
    "up and away": (MANIFEST, part("file", "../x.safetensors"), ["parts.0.file", "plain file"]),
    "absolute": (MANIFEST, part("file", "/etc/passwd"), ["parts.0.file", "plain file"]),
    "backslash": (MANIFEST, part("file", "..\\x"), ["parts.0.file", "plain file"]),
    "no file's name": (MANIFEST, part("file", ""), ["parts.0.file"]),
    "members cut": ("members.json", cut, ["not valid JSON"]),
    "members junk": ("members.json", text("[1]"), ["schema_version"]),
    "no list": ("members.json", edit(lambda m: m.pop("members")), ["members", "list"]),
    "no id": ("members.json", edit(lambda m: m["members"][1].pop("id")), ["members.1.id"]),
    "odd id": (
        "members.json",
        edit(lambda m: m["members"][1].update(id="x")),
        ["members.1.id", "'x'"],
    ),
    "members newer": ("members.json", edit(lambda m: m.update(schema_version=99)), ["newer"]),
    "sweep cut": ("sweep.json", cut, ["not valid JSON"]),
    "sweep newer": ("sweep.json", edit(lambda m: m.update(schema_version=99)), ["newer"]),
    "no units": ("sweep.json", edit(lambda m: m.pop("units")), ["units.resid"]),
    "odd scale": (
        "sweep.json",
        edit(lambda m: m["units"]["resid"].update(scale="x")),
        ["units.resid", "a number"],
    ),
    "status junk": ("run.json", text("{}"), ["schema_version"]),
    "table cut": ("metrics.parquet", cut, ["table of members"]),
    "table empty": ("metrics.parquet", text(""), ["table of members"]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_explained(folder: Path, case: str) -> None:
    name, damage, words = DAMAGE[case]
    whole(folder)
    damage(folder / name)
    with pytest.raises(CorruptFile) as error:
        whole(folder)
    message = str(error.value)
    assert str(folder / name) in message or str(folder / TENSORS) in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("name", [TENSORS, MANIFEST, "members.json", "sweep.json", "run.json"])
def test_any_flipped_bit_gives_an_answer_or_an_explanation(folder: Path, name: str) -> None:
    """Never another exception. What a checksum alone can find is found by `verify`."""
    path, draw = folder / name, random.Random(0)
    good = path.read_bytes()
    for _ in range(40):
        bad = bytearray(good)
        bad[draw.randrange(min(len(bad), 1500))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        try:
            whole(folder)
        except UserError as error:
            assert str(error)  # noqa: PT017


def test_the_latest_whole_checkpoint_is_found_behind_damaged_ones(folder: Path) -> None:
    checkpoints, path = Checkpoints(folder / "checkpoints"), folder / TENSORS
    assert checkpoints.latest().step == 3
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert checkpoints.latest().step == 1
    assert "SHA-256" in str(checkpoints.damaged[0])
    (folder / MANIFEST).unlink()
    assert checkpoints.latest().step == 1
    assert "missing" in str(checkpoints.damaged[0])


# --- signatures of one's own


class Own(BUILTIN["tied"]):
    """Another class than the built-in one."""


class Bare:
    """Without encode."""

    init, loss = BUILTIN["tied"].init, BUILTIN["tied"].loss


def test_own_signatures_are_given_never_imported(folder: Path) -> None:
    def rename(value: dict) -> None:
        for entry in value["members"]:
            entry["signature"] = "malicious:Own"

    edit(rename)(folder / "members.json")
    with pytest.raises(UserError, match=r"of your own(.|\n)*malicious:Own(.|\n)*YourClass"):
        load(folder).sae(0)
    assert load(folder, {"malicious:Own": Own}).sae(0).signature is Own
    with pytest.raises(UserError, match="has no 'encode'"):
        load(folder, {"malicious:Own": Bare}).sae(0).encode(torch.ones(1, D))
