"""`ensemble-sae`: every command under one name, quick to start, with examples in its help."""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
import sys

import pytest
from typer.main import get_command

import ensemble_sae
from ensemble_sae import big_sweep, cli, command_line, completion, terminal

NAMES = sorted(cli.COMMANDS)
HEAVY = ("torch", "numpy", "pandas", "transformers", "wandb", "rich.progress")


def examples(shown: str) -> list[str]:
    """The commands of the block that a help ends with, as a shell reads them."""
    block = shown.split("Examples:\n")[1]
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_nothing_large_is_imported_to_show_help() -> None:
    code = (
        "import sys; from ensemble_sae import cli\n"
        "sys.argv = ['ensemble-sae', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        f"finally: print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    for words in (["--help"], ["--version"], ["evaluate", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip().endswith("LOADED []"), done.stdout


def test_version(call) -> None:
    assert call("--version").stdout == f"ensemble-sae {ensemble_sae.__version__}\n"


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_ends_in_examples(call, monkeypatch, name: str, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = call(*name.split(), "--help")
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= columns
    found = examples(shown.stdout)
    assert found
    for line in found:
        words = shlex.split(line)
        assert words[0] == "ensemble-sae"
        assert not name or words[1] == name
        if words[1] in cli.COMMANDS and "--help" not in words:  # the real parser takes it
            command = get_command(cli.app).commands[words[1]]
            assert command.make_context(words[1], words[2:]).params


def test_modules_show_the_same_examples_as_they_are_called() -> None:
    environment = dict(os.environ, COLUMNS="80")
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_sae.big_sweep", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    _, written = command_line.split(big_sweep.__doc__ or "")
    assert [" ".join(shlex.split(line)) for line in examples(done.stdout)] == written
    assert all(line.startswith("python -m ensemble_sae.big_sweep") for line in written)
    assert len(written) == 5


def test_lines_are_broken_where_a_shell_goes_on() -> None:
    line = "python -m ensemble_sae.x runs/default --members pareto --effects --keep mcs:0.9 tail"
    for width in (30, 44, 60, 200):
        shown = command_line.fitted(line, width)
        assert shlex.split(shown.replace("\\\n", " ")) == shlex.split(line)
        assert max(map(len, shown.splitlines())) <= width
        assert not any(part.rstrip(" \\").endswith("--members") for part in shown.splitlines())
    assert "\n" not in command_line.fitted(line, 200)


def test_prose_and_examples_of_a_docstring() -> None:
    doc = "Title.\n\npython -m x a \\\n    --b c\npython -m x\n\nSome\nprose.\n"
    assert command_line.split(doc) == (["Some prose."], ["python -m x a --b c", "python -m x"])


def test_no_option_is_defined_twice() -> None:
    commands = get_command(cli.app).commands
    for name, main in cli.COMMANDS.items():
        assert inspect.unwrap(commands[name].callback) is main
    shared = {"as_json": command_line.Json, "run": command_line.RunFolder}
    for name in ("evaluate", "interpret", "export"):
        hints = inspect.get_annotations(cli.COMMANDS[name], eval_str=True)
        assert all(hints[key] == value for key, value in shared.items())


@pytest.mark.parametrize("argv", [["/bin/ensemble-sae", "study", "x y"], ["/a/study.py", "x y"]])
def test_a_command_as_it_was_called(monkeypatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    script = argv[0].endswith("sae")
    begin = "ensemble-sae study" if script else "python -m ensemble_sae.study"
    assert terminal.as_called("study") == f"{begin} 'x y'"
    begin = "ensemble-sae sweep" if script else "python -m ensemble_sae.big_sweep"
    assert terminal.spelled("big_sweep", "--run", "r") == f"{begin} --run r"


# --- completion


def completed(words: str, folder) -> list[str]:
    """What bash would be offered after `ensemble-sae WORDS`."""
    environment = {
        **os.environ,
        "_ENSEMBLE_SAE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"ensemble-sae {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    code = "from ensemble_sae import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_values_are_completed(tmp_path, monkeypatch) -> None:
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "sweep.json").touch()
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "mine.toml").touch()
    (tmp_path / "notes.txt").touch()
    assert completed("evaluate ", tmp_path) == ["runs/first", "runs/second"]
    assert completed("export runs/first --to s", tmp_path) == [
        "saelens",
        "safetensors",
        "sparsify",
    ]
    monkeypatch.chdir(tmp_path)
    assert completion.runs("runs/s") == ["runs/second"]
    assert completion.runs("runs/e") == ["runs/empty/"]
    assert completion.sweeps("t") == ["tied_vs_untied", "topk", "toy_96"]
    assert completion.sweeps("m") == ["mine.toml"]
    assert completion.sweeps("n") == []
    assert completion.wandb_modes("o") == ["off", "offline", "online"]
    assert "pythia70m_layers" in completion.recipes("py")
    assert completion.studies("po") == ["positions"]


@pytest.mark.parametrize(
    ("name", "option", "complete"),
    [
        ("sweep", "sweep", "sweeps"),
        ("sweep", "run", "runs"),
        ("sweep", "wandb", "wandb_modes"),
        ("harvest", "what", "recipes"),
        ("evaluate", "run", "runs"),
        ("interpret", "run", "runs"),
        ("export", "run", "runs"),
        ("export", "to", "formats"),
        ("info", "folder", "runs"),
        ("study", "name", "studies"),
    ],
)
def test_who_completes_what(name, option, complete, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(completion.builtin, "names", lambda kind: [kind])
    command = get_command(cli.app).commands[name]
    (found,) = (param for param in command.params if param.name == option)
    context = command.make_context(name, [], resilient_parsing=True)
    offered = [item.value for item in found.shell_complete(context, "")]
    assert offered == getattr(completion, complete)("")


def test_words_are_those_that_the_commands_know() -> None:
    from typing import get_args

    from ensemble_sae.engine.wandb_log import Mode
    from ensemble_sae.interop import FORMATS
    from ensemble_sae.studies import STUDIES

    assert set(completion.FORMATS) == set(FORMATS)
    assert set(completion.STUDIES) == set(STUDIES)
    assert set(completion.WANDB) == {"auto", *get_args(Mode)}


@pytest.mark.parametrize("name", ["sweeps", "recipes", "runs", "formats", "studies", "wandb_modes"])
def test_completion_never_raises(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for incomplete in ("", "nowhere/", "\0", "/", "~", "a" * 5000, "../" * 40):
        found = getattr(completion, name)(incomplete)
        assert all(word.startswith(incomplete) for word in found)
        assert len(found) <= completion.MOST
    monkeypatch.setattr(completion.builtin, "names", lambda kind: 1 / 0)
    assert getattr(completion, name)("nothing-like-it") == []
