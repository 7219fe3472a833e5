"""Where sweeps and recipes are found: a path to a TOML file, or the name of one that ships.

The repository keeps them at its top level (`sweeps/`, `activations/`); a wheel carries the same
files inside the package, under `ensemble_sae/builtin/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ensemble_sae.errors import UserError, nearest

Kind = Literal["sweeps", "activations"]
PACKAGE = Path(__file__).resolve().parent.parent


def folder(kind: Kind) -> Path:
    """The folder of the TOML files of this kind that ship with the package."""
    shipped = PACKAGE / "builtin" / kind
    return shipped if shipped.is_dir() else PACKAGE.parent / kind


def names(kind: Kind) -> list[str]:
    """The built-in names of this kind."""
    return sorted(path.stem for path in folder(kind).glob("*.toml"))


def find(kind: Kind, name: str | Path) -> Path:
    """The file for a built-in name or a path to a TOML file.

    Raises:
        UserError: neither a file nor a built-in name; lists the names.
    """
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"No such file in {path.parent.resolve()}.", found=str(name))
        return path
    if str(name) in names(kind):
        return folder(kind) / f"{name}.toml"
    word = {"sweeps": "sweep", "activations": "activation recipe"}[kind]
    raise UserError(
        f"Unknown {word}.",
        found=str(name),
        allowed=f"{nearest(str(name), names(kind))}, or a path that ends in .toml",
    )
