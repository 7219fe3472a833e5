"""Virtual environments for the peers, under `build/peers`: made once, used again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2] / "build" / "peers"
TORCH = f"torch=={torch.__version__.split('+')[0]}"  # the same one as ours
PATIENCE_S = 3600


class NotInstalled(Exception):
    """An environment could not be made; the message says why."""


@dataclass(frozen=True)
class Environment:
    """What is installed for a peer.

    Args:
        unwanted: packages that come along, that a training step does not need, and that would not
            load: PyPI's torchvision is built for another build of torch than the CPU's.
    """

    name: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


ENVIRONMENTS = {
    one.name: one
    for one in (
        Environment(
            "dictionary_learning",
            ("dictionary-learning==0.1.0", "transformers<6"),
            unwanted=("torchvision",),
        ),
        Environment("saelens", ("sae-lens==6.54.12", "transformer-lens<4")),
        Environment("sparsify", ("eai-sparsify==1.3.3",)),
    )
}


def python_of(wanted: Environment, say: Callable[[str], None]) -> str:
    """The interpreter of an environment, which is made where it is missing or of other versions.

    Raises:
        NotInstalled: with the installer's last words.
    """
    folder = ROOT / wanted.name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done, contents = folder / ".installed", repr((TORCH, wanted))
    if python.exists() and done.exists() and done.read_text(encoding="utf-8") == contents:
        return str(python)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    say(f"{wanted.name}: new environment in {folder}")
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    # torch by itself first: only then do the others keep the build that is right for the machine
    for requirements in ((TORCH,), (TORCH, *wanted.requirements)):
        say(f"{wanted.name}: installing {', '.join(requirements)}")
        _call([*pip, "install", "--quiet", *requirements])
    if wanted.unwanted:
        _call([*pip, "uninstall", "--quiet", "--yes", *wanted.unwanted])
    done.write_text(contents, encoding="utf-8")
    return str(python)


def _call(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines() or ["no message"]
        errors = [line for line in said if line.startswith("ERROR")]  # pip's, before its notices
        raise NotInstalled((errors or said)[-1]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from error
