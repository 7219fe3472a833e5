"""Members of a run, written for other packages: a folder each, whole or not at all."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_sae.errors import UserError, nearest
from ensemble_sae.files import TEMPORARY, sync_folder, write_atomically
from ensemble_sae.interop.about import About
from ensemble_sae.interop.card import card
from ensemble_sae.interop.folders import FORMATS, format_of
from ensemble_sae.interop.folding import fold
from ensemble_sae.lm.origin import origin
from ensemble_sae.run import Run

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS = ("l0", "fvu", "dead")
_IN_MODEL = ("ce", "ce_recovered", "kl")


def export(
    run: Run, members: Sequence[int], to: str, out: str | Path, *, overwrite: bool = False
) -> list[Path]:
    """Write members in another package's format.

    Args:
        to: one of `FORMATS`.
        out: the folder of a single member; of several, the folder that theirs go into.
        overwrite: replace folders that are there and hold an export; no others.

    Returns:
        The folders, in the order of the members.

    Raises:
        UserError: an unknown format or member, a folder that is there, or a member that the
            format cannot express (says why); then nothing is written.
    """
    if to not in FORMATS:
        raise UserError(
            "Unknown format.", where="--to", found=repr(to), allowed=nearest(to, FORMATS)
        )
    root, members = Path(out), list(dict.fromkeys(members))
    folders = [root] if len(members) == 1 else [root / slug(run, member) for member in members]
    for folder in folders:
        _check_free(folder, overwrite)
    written: list[tuple[Path, Path]] = []
    try:
        for member, folder in zip(members, folders, strict=True):
            temporary = folder.with_name(f"{TEMPORARY}{os.getpid()}-{folder.name}")
            written.append((temporary, folder))
            _write(run, member, to, temporary, folder)
        for temporary, folder in written:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            sync_folder(folder.parent)
    finally:
        for temporary, _ in written:
            shutil.rmtree(temporary, ignore_errors=True)
    return folders


def _check_free(folder: Path, overwrite: bool) -> None:
    """See that a folder may be written: it is empty, or an export that may be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    is_export = folder.is_dir() and format_of(folder) is not None
    if overwrite and is_export:
        return
    raise UserError(
        "There is something in the folder already.",
        where=str(folder),
        found="an export" if is_export else "something that no export wrote",
        next_step="give another --out" + (", or --overwrite" if is_export else ""),
    )


def slug(run: Run, member: int) -> str:
    """A member as a folder's name: `00017-tied-l1-1.3e-2-r-0.5`."""
    name = run.configurations[member].name if member in run.configurations else ""
    return f"{member:05d}-{re.sub(r'[^A-Za-z0-9.-]+', '-', name).strip('-')}"


def _write(run: Run, member: int, to: str, temporary: Path, folder: Path) -> None:
    form: Any = FORMATS[to]
    folded, about = fold(run.sae(member)), about_of(run, member)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            "The folder cannot be made.", where=str(folder), found=error.strerror
        ) from None
    form.write(folded, temporary, about)
    text = card(folded, about, to, form.LOAD.format(folder=folder.name))
    write_atomically(temporary / "README.md", lambda path: path.write_text(text, "utf-8"))


def about_of(run: Run, member: int) -> About:
    """What is known of a member: its configuration, its numbers, where its rows come from."""
    config = run.configurations[member]
    found = _numbers(run.members, member, _NUMBERS)
    with contextlib.suppress(UserError, KeyError):  # not evaluated in its language model
        found |= _numbers(run.evaluation.members, member, _IN_MODEL)
    try:
        recipe: Any = origin(run)
    except UserError:
        recipe = None  # of rows that were brought along nobody knows the model
    return About(
        hook=config.hook,
        model=getattr(recipe, "model", None),
        dataset=getattr(recipe, "dataset", None),
        context=getattr(recipe, "context", None),
        bos=None if recipe is None else True,
        member=_json(asdict(config)),
        results={name: value for name, value in found.items() if math.isfinite(value)},
        text=config.name,
    )


def _numbers(table: pd.DataFrame, member: int, names: tuple[str, ...]) -> dict[str, float]:
    row: Any = table.loc[member]
    return {name: float(row[name]) for name in names if name in row}


def _json(value: Any) -> Any:
    """As JSON has it: tuples as lists, no number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
