"""The formats, and which of them a folder is in, found by looking."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from ensemble_sae.errors import UserError
from ensemble_sae.interop import dictionary_learning, plain, saelens, sparsify
from ensemble_sae.interop.reading import loaded
from ensemble_sae.run.sae import Sae

FORMATS: dict[str, ModuleType] = {
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "safetensors": plain,
}
SHOWN = 8  # names of files in a message


def from_folder(path: str | Path) -> Sae:
    """A dictionary in any of the formats that are written: `FORMATS`.

    Its configuration says which, in `hyperparameters["format"]`.

    Raises:
        UserError: the folder is in none of them, or see `from_saelens` and the others.
    """
    folder = Path(path)
    form = format_of(folder)
    if form is None:
        raise _unknown(folder)
    module: Any = FORMATS[form]
    return loaded(module.read, folder, form)


def format_of(folder: Path) -> str | None:
    """The name of the format whose two files are in a folder; None if there are no such files."""
    for name, module in FORMATS.items():
        form: Any = module
        if (folder / form.CONFIG).is_file() and (folder / form.WEIGHTS).is_file():
            return name
    return None


def _unknown(folder: Path) -> UserError:
    if not folder.is_dir():
        what = "no such folder" if not folder.exists() else "a file: give the folder it is in"
        return UserError("There is no dictionary here.", where=str(folder), found=what)
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and format_of(p)]
    forms: list[Any] = list(FORMATS.values())
    pairs = (f"{n} ({f.CONFIG}, {f.WEIGHTS})" for n, f in zip(FORMATS, forms, strict=True))
    return UserError(
        "This folder holds no dictionary in a known format.",
        where=str(folder),
        found=", ".join(names[:SHOWN]) + more if names else "an empty folder",
        allowed=", ".join(pairs),
        next_step=f"name the folders in it: {folder}/*" if inside else None,
    )
