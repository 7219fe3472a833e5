"""The package as a whole: fast to import, safe to read with, layered, and whole in its wheel."""

from __future__ import annotations

import ast
import os
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ensemble_sae
from ensemble_sae.data.store import ChunkStore

PACKAGE = Path(ensemble_sae.__file__).parent
REPOSITORY = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))

LEVELS = [  # a room may import from its own level's room and from the levels below
    {"cli"},
    {"big_sweep", "harvest", "evaluate", "interpret", "report", "export", "adopt", "study", "info"},
    {"studies"},
    {"engine"},
    {"reporting"},
    {"interpretation"},
    {"evaluation", "inspection", "interop"},
    {"dispatch"},
    {"lm"},
    {"analysis", "baselines"},
    {"run"},
    {"pages"},
    {"train"},
    {"sweep"},
    {"metrics"},
    {"data"},
    {"kernels"},
    {"signatures"},
    {"command_line"},
    {"completion"},
    {"config"},
    {"files", "randomness", "terminal"},
    {"errors"},
]
LEVEL = {room: height for height, rooms in enumerate(reversed(LEVELS)) for room in rooms}


def python(*arguments: str | Path, executable: str | Path = sys.executable, **options):
    """Run Python in another process, without what this one's environment adds."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [executable, *arguments], capture_output=True, text=True, env=clean, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "absolute imports only"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in MODULES:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_import_is_fast_and_leaves_torch_alone() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import ensemble_sae;"
        "print(time.perf_counter() - began, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    seconds, torch, numpy = python("-c", code).split()
    assert float(seconds) < 1
    assert (torch, numpy) == ("False", "False")


def test_public_names_are_found_where_they_are_used() -> None:
    for name in ensemble_sae.__all__:
        assert getattr(ensemble_sae, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = ensemble_sae.nothing


def test_rooms_import_downwards_only() -> None:
    upward, rooms = [], set()
    for path, tree in trees():
        room = room_of(path)
        if room == "__init__":  # imports from everywhere, when a name is first used
            continue
        rooms.add(room)
        assert room in LEVEL, f"{room} has no place in LEVELS"
        for module in imported(tree):
            other = module.split(".")[1] if module.startswith("ensemble_sae.") else room
            if other != room and LEVEL.get(other, -1) >= LEVEL[room]:
                upward.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert upward == []
    assert rooms == LEVEL.keys()


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def test_nothing_on_disk_is_unpickled_or_executed() -> None:
    unsafe = []
    for path, tree in trees():
        unsafe += [(path, m) for m in imported(tree) if m.split(".")[0] in UNSAFE_MODULES]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            words = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            called = ast.unparse(node.func)
            reads = called in ("torch.load", "torch.hub.load") and not words.get("weights_only")
            trusts = words.get("allow_pickle") or words.get("trust_remote_code")
            if called in UNSAFE_CALLS or reads or trusts or called.endswith("read_pickle"):
                unsafe.append((path, f"line {node.lineno}: {called}"))
    assert unsafe == []


def test_everything_public_has_a_docstring() -> None:
    silent = []
    for path, tree in trees():
        if tree.body and not ast.get_docstring(tree):
            silent.append(str(path))
        for node in tree.body:
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            public = isinstance(node, kinds) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                silent.append(f"{path}:{node.lineno} {node.name}")
    assert silent == []


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    python("-m", "pip", "wheel", *options, "--wheel-dir", folder, REPOSITORY, cwd=folder)
    return next(folder.glob("ensemble_sae-*.whl"))


def test_the_wheel_holds_all_that_the_package_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(path.relative_to(REPOSITORY)) for path in MODULES}
    embedded = PACKAGE / "lm" / "embedded"
    expected |= {str(path.relative_to(REPOSITORY)) for path in embedded.iterdir()}
    for kind in ("sweeps", "activations"):
        shipped = {f"ensemble_sae/builtin/{kind}/{p.name}" for p in (REPOSITORY / kind).iterdir()}
        assert len(shipped) > 0
        expected |= shipped
    assert expected - names == set()
    top = {name.split("/")[0] for name in names}
    assert top == {"ensemble_sae", f"ensemble_sae-{ensemble_sae.__version__}.dist-info"}


SWEEP = """
[activations]
store = "rows"

[train]
batch_size = 32

[grid]
signature = ["tied", "untied"]
dict_ratio = 2
l1 = [1e-3, 1e-2]
"""


def test_the_wheel_trains_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Installed beside nothing but its dependencies, run from a folder that is no checkout."""
    environment, work = tmp_path / "environment", tmp_path / "elsewhere"
    python("-m", "venv", "--without-pip", environment)
    own = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    # The dependencies of this environment, without the editable install of this checkout: a
    # folder in a .pth file is searched, the .pth files in it are not read.
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    home = Path(python("-c", where, executable=own).strip())
    dependencies = [path for path in site.getsitepackages() if Path(path).is_dir()]
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    python("-m", "pip", "--python", own, "install", *options, wheel)
    (home / "dependencies.pth").write_text("\n".join(dependencies))
    work.mkdir()
    place = python("-c", "import ensemble_sae as e; print(e.__file__)", executable=own, cwd=work)
    assert Path(place.strip()).is_relative_to(environment)

    import torch

    ChunkStore.write(work / "rows", torch.randn(400, 8), chunk_rows=100, held_out=0.25)
    (work / "mine.toml").write_text(SWEEP)
    sweep = ["-m", "ensemble_sae.big_sweep"]
    devices = ["--devices", "cpu:1", "--wandb", "off"]
    shown = python(*sweep, "mine.toml", *devices, executable=own, cwd=work)
    assert "4 members" in shown
    run = ensemble_sae.load(work / "runs" / "mine")
    assert run.members["status"].tolist() == ["trained"] * 4
    assert run.sae(0).encode(torch.zeros(1, 8)).shape == (1, 16)
    dry = python(*sweep, "default", "--dry-run", *devices, executable=own, cwd=work)
    assert "Sweep default: 216 members" in dry
