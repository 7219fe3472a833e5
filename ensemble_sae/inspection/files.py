"""What was found of a member's features, on the disk: RUN/inspected/member-000017-1f0c32aa/.

The last part of the name is a digest of what was asked for: another question has another folder.

settings.json         which model, which text, which checkpoint
table.parquet         a row for each feature
examples.safetensors  fragments and activations
vocabulary.json       the texts of the tokens in them
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.errors import CorruptFile
from ensemble_sae.files import (
    TEMPORARY,
    open_tensors,
    read_json,
    sync_folder,
    write_json,
    write_tensors,
)
from ensemble_sae.inspection.examples import Contexts, Examples
from ensemble_sae.inspection.feature import Features
from ensemble_sae.run import Run, Sae

KINDS = ("top", "spread", "random")
SETTINGS, TABLE = "settings.json", "table.parquet"
EXAMPLES, VOCABULARY = "examples.safetensors", "vocabulary.json"


def folder_of(run: Path, member: int, settings: dict[str, Any]) -> Path:
    """Where a member's features are kept, as they were asked for with these settings."""
    text = json.dumps(settings, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return run / "inspected" / f"member-{member:06d}-{digest}"


def kept(run: Run, damaged: list[str]) -> dict[int, Path]:
    """Members whose features are kept as they are at the latest checkpoint: id -> folder.

    Of several questions about one member, the one with effects, then that of most text. Folders
    that cannot be read are told in `damaged`.
    """
    step = run.checkpoints[-1].step if run.checkpoints else 0
    found: dict[int, tuple[bool, int, Path]] = {}
    for folder in sorted((run.path / "inspected").glob("member-*")):
        number = folder.name.split("-")[1]
        if not (folder / SETTINGS).is_file() or not number.isdigit():
            continue
        member = int(number)
        try:
            settings = read_json(folder / SETTINGS)
        except CorruptFile as error:
            damaged.append(f"{error.what} {error.where}")
            continue
        if not isinstance(settings, dict) or settings.get("step") != step:
            continue
        tokens = settings.get("tokens")
        if member not in run.configurations or not isinstance(tokens, int):
            continue
        rank = (bool(settings.get("effects")), tokens, folder)
        found[member] = max(rank, found.get(member, (False, -1, folder)))
    return {member: folder for member, (_, _, folder) in found.items()}


def save(features: Features, folder: Path) -> None:
    """Write them, all or nothing; what was there stays until then."""
    final, folder = folder, folder.with_name(f"{TEMPORARY}{os.getpid()}-{folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for kind in KINDS:
        contexts: Contexts = getattr(features.examples, kind)
        tensors |= {f"{kind}/{name}": values for name, values in contexts._asdict().items()}
    more = {
        "dropped": features.dropped,
        "drawn": features.examples.drawn,
        "histogram": features.histogram,
    }
    tensors |= {name: tensor for name, tensor in more.items() if tensor is not None}
    write_tensors(folder / EXAMPLES, tensors)
    write_json(
        folder / VOCABULARY, {str(token): text for token, text in features.vocabulary.items()}
    )
    features.table.to_parquet(folder / TABLE)
    write_json(folder / SETTINGS, {**features.settings, "effects": features.dropped is not None})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(folder, final)
    sync_folder(final.parent)


def _check(settings: dict[str, Any], words: dict[int, str], kinds: tuple[Contexts, ...]) -> None:
    """See that the parts belong together.

    Raises:
        ValueError: they do not.
    """
    for name in ("fragments", "width", "tokens"):
        if not isinstance(settings.get(name), int):
            raise ValueError(f"{SETTINGS} has no {name}")
    met = torch.cat([kind.tokens.flatten().unique() for kind in kinds]).unique().tolist()
    if lacking := [token for token in met if token not in words]:
        raise ValueError(f"{VOCABULARY} has no token {lacking[0]}")


def load(sae: Sae, folder: Path, settings: dict[str, Any] | None = None) -> Features | None:
    """Read what is there; None if there is nothing, or it is of other settings.

    Raises:
        CorruptFile: it is damaged.
    """
    import pandas as pd

    if not (folder / SETTINGS).is_file():
        return None
    found = read_json(folder / SETTINGS)
    if settings is not None and any(found.get(key) != value for key, value in settings.items()):
        return None
    file = open_tensors(folder / EXAMPLES)
    names = set(file.keys())
    try:
        top, spread, random = (
            Contexts(*(file.get_tensor(f"{kind}/{name}") for name in Contexts._fields))
            for kind in KINDS
        )
        table = pd.read_parquet(folder / TABLE)
        words = {int(token): text for token, text in read_json(folder / VOCABULARY).items()}
        _check(found, words, (top, spread, random))
    except Exception as error:  # each library has its own ways to say so
        raise CorruptFile(
            "What is kept of a member's features is damaged.",
            where=str(folder),
            found=str(error)[:200],
            next_step="remove the folder; it is made again when it is asked for",
        ) from None
    dropped, drawn, histogram = (
        file.get_tensor(name) if name in names else None
        for name in ("dropped", "drawn", "histogram")
    )
    examples = Examples(torch.arange(len(table)), top, spread, random, drawn)
    return Features(sae, found, table, examples, words, dropped, histogram)
