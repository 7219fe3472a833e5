"""What a shell completes: names that ship with the package, runs, words that options know.

A key press waits for these, so they read names of files and import nothing large; whatever goes
wrong, there is nothing to complete, and no traceback in the middle of a command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path

from ensemble_sae.config import builtin

FORMATS = ("saelens", "dictionary_learning", "sparsify", "safetensors")
STUDIES = ("toy_96", "init_study", "overcomplete_tricks", "positions")
WANDB = ("auto", "online", "offline", "off")
MOST = 200  # folders and files, of a folder with many

Complete = Callable[[str], list[str]]


def _quiet(complete: Callable[[str], Iterable[str]]) -> Complete:
    @wraps(complete)
    def quiet(incomplete: str) -> list[str]:
        try:
            return sorted({w for w in complete(incomplete) if w.startswith(incomplete)})[:MOST]
        except Exception:
            return []

    return quiet


@_quiet
def sweeps(incomplete: str) -> Iterable[str]:
    """Built-in sweeps, and `.toml` files."""
    return [*builtin.names("sweeps"), *_paths(incomplete, ".toml")]


@_quiet
def recipes(incomplete: str) -> Iterable[str]:
    """Built-in recipes, and `.toml` and `.npy` files."""
    return [*builtin.names("activations"), *_paths(incomplete, ".toml", ".npy")]


@_quiet
def runs(incomplete: str) -> Iterable[str]:
    """Runs in `runs/`, and folders."""
    there = [str(path.parent) for path in Path("runs").glob("*/sweep.json")]
    return [*there, *([] if any(r.startswith(incomplete) for r in there) else _paths(incomplete))]


@_quiet
def formats(incomplete: str) -> Iterable[str]:
    """Formats of other packages."""
    return FORMATS


@_quiet
def studies(incomplete: str) -> Iterable[str]:
    """Published studies."""
    return STUDIES


@_quiet
def wandb_modes(incomplete: str) -> Iterable[str]:
    """Modes of wandb."""
    return WANDB


def _paths(incomplete: str, *suffixes: str) -> Iterable[str]:
    """Folders, and files with one of these suffixes, beside what is typed so far."""
    parent = os.path.dirname(incomplete)
    for entry in os.scandir(parent or "."):
        path = os.path.join(parent, entry.name)
        if entry.name.startswith(".") and not incomplete.endswith("."):
            continue
        if entry.is_dir():
            yield f"{path}/"
        elif entry.name.endswith(suffixes or ("/",)):
            yield path
