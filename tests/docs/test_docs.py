"""Tried as a new user would: every block of the pages runs, every name on them exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_lm_run
import typer
from filelock import FileLock
from pages import PAGES, ROOT, TEXTS, Block, Page
from typer.main import get_command

from ensemble_sae import cli
from ensemble_sae.config import builtin
from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.errors import UserError
from ensemble_sae.studies import STUDIES
from ensemble_sae.sweep.schema import Sweep, load_sweep
from ensemble_sae.terminal import SCRIPT

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
WIDTH = 512  # every built-in sweep can be expanded for rows of this width
COMMANDS = {main.__module__: main for main in cli.COMMANDS.values()}
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
texts = pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny store and two tiny runs; made once, also for several workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "docs-example"
    with FileLock(f"{shared}.lock"):
        if not (shared / "done").exists():
            shutil.rmtree(shared, ignore_errors=True)
            shared.mkdir()
            make_example(shared)
            (shared / "done").touch()
    return shared


def make_example(folder: Path) -> None:
    import ensemble_sae
    from ensemble_sae.data.synthetic import chunk_of_rows

    values = {"d_activation": 16, "n_features": 32, "mean_active": 2.0, "rows": 8_000}
    recipe = SyntheticRecipe(kind="synthetic", name="mine", **values)
    rows = chunk_of_rows(recipe, "uncorrelated", 8_000, 0)
    ensemble_sae.ChunkStore.write(folder / "data/mine", rows, chunk_rows=2_048)
    ensemble_sae.run_sweep(
        [
            {"signature": name, "dict_ratio": 2, "l1": l1}
            for name in ("tied", "untied")
            for l1 in (1e-3, 1e-2)
        ],
        activations={"store": str(folder / "data/mine"), "normalise": "standard"},
        train={"batch_size": 256},
        run=folder / "runs/mine",
        devices="cpu:1",
        threads=1,
    )
    small_lm_run.make_run(folder / "language", small_lm_run.MEMBERS[:4])
    (folder / "language/run").rename(folder / "runs/default")


@pytest.fixture
def folder(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with `data/mine`, `runs/mine` of its rows, and a `runs/default` of the
    embedded language model.
    """
    shutil.copytree(example / "data", tmp_path / "data")
    shutil.copytree(example / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    for name in {path.stem for path in tmp_path.glob("*.py")}:
        sys.modules.pop(name, None)


@by_name
def test_blocks_run(page: Page, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in page.blocks:
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        if block.not_run is not None and block.language == "python":
            compile(block.text, block.place, "exec")
        elif block.not_run is not None:
            check_without_running(block)
        elif block.language == "python" and block.file is None:
            code = compile("\n" * block.line + block.text, block.page, "exec")
            exec(code, names)
        elif block.language == "python":
            compile(block.text, block.place, "exec")
        elif block.language == "bash":
            run_bash(block, folder)
        elif block.language == "toml":
            check_toml(block, folder)
        else:
            assert block.language in ("", "text"), f"{block.place}: which language?"


def run_bash(block: Block, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", block.text],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{block.place}\n{block.text}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


def check_toml(block: Block, folder: Path) -> None:
    """A sweep or a recipe, by the real loader; members too where the rows are there."""
    from ensemble_sae.engine import stores
    from ensemble_sae.sweep import expand

    path = folder / (block.file or "unnamed.toml")
    path.write_text(block.text, encoding="utf-8")
    if not re.search(r"^\[+(activations|grid|members)\]", block.text, re.MULTILINE):
        load_recipe(path)
        return
    sweep, where = load_sweep(path)
    if sweep.activations.store is not None:
        widths = stores.locate(sweep.activations, folder / "data").widths
    else:
        assert sweep.activations.recipe is not None
        widths = dict.fromkeys(load_recipe(sweep.activations.recipe).hooks, WIDTH)
    assert expand(sweep, widths, where)


def check_without_running(block: Block) -> None:
    """The targets and options of every command are there, and the files that it names parse."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] == "source":
            continue
        if words[0].startswith("build/") or words[:3] == ["python", "-m", "venv"]:
            continue  # another package's environment: `make test-interop` makes those
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
            continue
        if words[1].startswith("benchmarks/"):
            check_script(words[1], words[2:])
            continue
        if words[0] == SCRIPT:
            main, arguments = cli.COMMANDS.get(words[1]), words[2:]
            if main is None:  # an option of the script itself
                assert words[1] in script_options(), f"{block.place}: {line}"
                continue
        else:
            assert words[:2] == ["python", "-m"], f"{block.place}: {line}"
            main, arguments = COMMANDS[words[2]], words[3:]
        options = parsed(main, arguments)
        if main is cli.COMMANDS["sweep"]:
            sweep = options["sweep"] or "default"
            # A file that the reader is told to write is not there.
            if sweep in builtin.names("sweeps"):
                load_sweep(sweep, tuple(options["settings"] or ()))
            else:
                assert sweep.endswith(".toml")
            if options["gpus"] is not None:
                check_gpus(options["gpus"])
        elif main is cli.COMMANDS["study"]:
            assert options["name"] in STUDIES
        elif "run" in options:
            assert options["run"].parts[0] == "runs"
        elif main is cli.COMMANDS["harvest"] and not options["from_npy"]:
            load_recipe(options["what"][0])


def check_script(script: str, arguments: list[str]) -> None:
    """The script is there and starts, and its help knows every option that the page gives."""
    done = subprocess.run(
        [sys.executable, script, "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env=dict(os.environ, **ENVIRONMENT),
    )
    for option in arguments:
        assert not option.startswith("-") or option in done.stdout, f"{script}: {option}"


def parsed(main: Any, arguments: list[str]) -> dict[str, Any]:
    app = typer.Typer()
    app.command()(main)
    return get_command(app).make_context("command", arguments).params


def check_gpus(count: int) -> None:
    import torch

    from ensemble_sae.dispatch.devices import choose

    if torch.cuda.device_count() < count:
        with pytest.raises(UserError, match=f"--gpus {count}, but this machine has") as caught:
            choose(count, None)
        assert "python -m ensemble_sae.big_sweep --" in str(caught.value.next_step)


@texts
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if link.startswith("https://"):
            assert link.split("/")[2] in {"keepachangelog.com", "docs.python.org"}, link
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        assert target.is_file(), link
        if anchor:
            assert anchor in Page(target).anchors, link


def test_every_page_is_in_the_index() -> None:
    index = Page(ROOT / "docs/index.md")
    missing = {page.path.name for page in PAGES[1:]} - {Path(link).name for link in index.links}
    assert missing == {"index.md"}


@texts
def test_names_exist(page: Page) -> None:
    """Paths of the repository, modules, make targets and options that the prose mentions."""
    options = script_options().union(*(option_names(main) for main in COMMANDS.values()))
    for code in page.code:
        if match := re.match(r"python (benchmarks/\S+)", code):
            assert (ROOT / match[1]).is_file(), code
            continue
        if re.fullmatch(r"(ensemble_sae|docs|sweeps|activations|benchmarks|tests)/[\w./-]*", code):
            assert (ROOT / code).exists(), code
        if match := re.fullmatch(r"python -m ([\w.]+).*", code):
            assert importlib.util.find_spec(match[1]), code
        elif match := re.fullmatch(rf"{SCRIPT} ([a-z]\w*).*", code):
            assert match[1] in cli.COMMANDS, code
        elif match := re.fullmatch(r"(ensemble_sae(?:\.\w+)+).*", code):
            assert resolves(match[1]), code
        if match := re.fullmatch(r"make (\w+)", code):
            assert re.search(rf"^{match[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), code
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert option in options | {"--tokens", "--minutes"}, code  # of train_embedded
    for place in re.findall(r"(?<![\w.`~-])/(?:home|root|tmp|work|mnt|usr|opt)\b\S*", page.text):
        pytest.fail(f"{page.name} names a path of some machine: {place}")


def option_names(main: Any) -> set[str]:
    app = typer.Typer()
    app.command()(main)
    params = get_command(app).params
    return {name for option in params for name in (*option.opts, *option.secondary_opts)}


def script_options() -> set[str]:
    """Of `ensemble-sae` itself; `--help` is added to a command when it is parsed."""
    params = get_command(cli.app).params
    return {"--help", *(name for option in params for name in option.opts)}


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return "." in dotted and hasattr(importlib.import_module(module), name)
    return True


def test_the_error_that_is_shown_is_the_one_that_comes(folder: Path) -> None:
    page = Page(ROOT / "docs/sweep_files.md")
    (sweep,) = (block for block in page.blocks if block.file == "my_sweep.toml")
    (command,) = (block for block in page.blocks if block.not_run is not None)
    (shown,) = (block for block in page.blocks if block.language == "text")
    (folder / "my_sweep.toml").write_text(sweep.text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_sweep("my_sweep.toml", (command.text.split("--set ")[1].strip(),))
    assert shown.text == f"error: {caught.value}\n"


def test_the_sections_of_a_sweep_are_all_there() -> None:
    text = (ROOT / "docs/sweep_files.md").read_text(encoding="utf-8")
    for name in Sweep.model_fields:
        assert re.search(rf"^## .*`\[*{name}\]*`", text, re.MULTILINE), name


def test_every_built_in_sweep_is_listed_with_its_members() -> None:
    from ensemble_sae.sweep import expand

    text = (ROOT / "docs/sweep_files.md").read_text(encoding="utf-8").split("## Built-in sweeps")[1]
    listed = {
        name: (recipe, int(n))
        for name, recipe, n in re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+):", text, re.MULTILINE)
    }
    assert set(listed) == set(builtin.names("sweeps"))
    for name, (recipe, members) in listed.items():
        sweep, where = load_sweep(name)
        assert sweep.activations.recipe == recipe
        widths = dict.fromkeys(load_recipe(recipe).hooks, WIDTH)
        assert len(expand(sweep, widths, where)) == members, name
    recipes = (ROOT / "docs/activations.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in recipes for name in builtin.names("activations"))


def test_the_rooms_are_as_the_code_has_them() -> None:
    """docs/architecture.md's table: every part is listed, and imports only parts below it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.split("## Rooms")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| [^|]+ \| ([^|]+) \|$", section, re.MULTILINE)
    order = [[name.strip("`/ ").removesuffix(".py") for name in row[0].split(",")] for row in rows]
    rank = {name: place for place, names in enumerate(order) for name in names}
    said = {name: row[1] for names, row in zip(order, rows, strict=True) for name in names}
    free = {"errors", "files", "randomness", "terminal", "__init__", "__version__"}
    found = imports()
    assert set(found) - free == set(rank)
    for part, others in found.items():
        for other in others - free - {part}:
            if part in free:
                continue
            assert rank[part] < rank[other], f"{part} imports {other}"
            everything = "everything below" in said[part]
            assert everything or other in said[part], f"{part} imports {other}, which is not said"


def imports() -> dict[str, set[str]]:
    package = ROOT / "ensemble_sae"
    found: dict[str, set[str]] = {}
    for file in package.rglob("*.py"):
        part = found.setdefault(file.relative_to(package).parts[0].removesuffix(".py"), set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ensemble_sae"):
                names = (node.module or "").split(".")[1:2] or [alias.name for alias in node.names]
                part.update(names)
    return found


def test_the_readme_has_its_tables() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("frontier", "throughput"):
        block = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
        assert "made by" in block.lower()


def test_the_changelog_is_of_this_version() -> None:
    from ensemble_sae import __version__

    assert __version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
