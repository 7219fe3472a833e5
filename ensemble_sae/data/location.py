"""Where chunk stores are kept: `<data folder>/<name>/<hook>/`."""

from __future__ import annotations

import os
from pathlib import Path

from ensemble_sae.errors import UserError

VARIABLE = "ENSEMBLE_SAE_DATA"


def data_dir(given: str | Path | None = None) -> Path:
    """The data folder: `given`, else `$ENSEMBLE_SAE_DATA`, else `./data`."""
    return Path(given or os.environ.get(VARIABLE) or "data")


def store_path(data_dir: str | Path, name: str, hook: str) -> Path:
    """The folder of the store with the rows of `hook`, harvested under `name`.

    Raises:
        UserError: a part is not a plain name, so that the store would lie elsewhere.
    """
    for part, word in ((name, "name"), (hook, "hook")):
        if part in ("", ".", "..") or any(c in part for c in "/\\\0"):
            raise UserError(
                f"A {word} may not be used as a folder's name.",
                found=repr(part),
                allowed="a plain name without path separators",
            )
    return Path(data_dir) / name / hook
