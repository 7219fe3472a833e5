"""The files of a run of adopted dictionaries: all of them or none."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ensemble_sae.config.recipe import AnyRecipe
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import Units
from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.engine import results
from ensemble_sae.engine.adopting_rows import measured
from ensemble_sae.engine.resume import versions
from ensemble_sae.errors import UserError
from ensemble_sae.files import TEMPORARY, sync_folder, write_json, write_tensors
from ensemble_sae.run import Checkpoints, Layout, Part, Position, Sae
from ensemble_sae.run.checkpoint import write_part
from ensemble_sae.run.layout import SCHEMA_VERSION
from ensemble_sae.signatures import Tensors
from ensemble_sae.sweep import Group, Sweep, groups_of

ADOPTED = "adopted"


@dataclass(frozen=True)
class Facts:
    """What a run's files say beside its members.

    Attributes:
        stores: by hook; empty without rows.
        places: of each member, where it came from.
    """

    sweep: Sweep
    recipe: AnyRecipe | None
    stores: dict[str, ChunkStore]
    places: list[str | None]
    began: float


def write_whole(folder: Path, saes: list[Sae], facts: Facts) -> None:
    """Measure and write into a temporary folder, which then gets its name.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary = folder.with_name(f"{TEMPORARY}{os.getpid()}-{folder.name}")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(Layout(temporary), saes, facts)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:  # innermost first; what another put there stays
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(
                "The run's folder cannot be made.", where=str(folder), found=str(error)
            ) from None
        raise


def _write(layout: Layout, saes: list[Sae], facts: Facts) -> None:
    members = [sae.config for sae in saes]
    groups = groups_of(members)
    status = {member.id: ADOPTED for member in members}
    evaluated = []
    if facts.stores:
        layout.features.mkdir()
        for sae in saes:
            row, tensors = measured(sae, facts.stores[sae.config.hook])
            write_tensors(layout.features / f"m{sae.config.id}.safetensors", tensors)
            evaluated.append(row)
    results.write_members(layout, groups, status)
    results.write_table(layout, results.make_table(members, groups, status, evaluated))
    _write_checkpoint(layout, saes, groups)
    write_json(layout.status, _status(saes, facts))
    write_json(layout.sweep, _known(saes, facts))


def _write_checkpoint(layout: Layout, saes: list[Sae], groups: list[Group]) -> None:
    """A part for each member, with what `run.sae` reads: nothing that a training would need."""
    checkpoints = Checkpoints(layout.checkpoints)
    folder = checkpoints.begin()
    group_of = {member.id: group.name for group in groups for member in group.members}
    parts: list[Part] = []
    for sae in saes:
        id, state = sae.config.id, _state(sae)
        parts.append(write_part(folder, group_of[id], [id], state, Position()))
    checkpoints.commit(folder, parts, {"rows": [], "frozen": {}})


def _state(sae: Sae) -> Tensors:
    """Params and buffers, of one member on axis 0."""
    stacked = {
        f"{what}/{name}": tensor[None]
        for what, tensors in (("params", sae.params), ("buffers", sae.buffers))
        for name, tensor in tensors.items()
    }
    return stacked | {"step": torch.tensor(0)}


def _status(saes: list[Sae], facts: Facts) -> dict[str, Any]:
    origin = [
        {
            "member": sae.config.id,
            "path": place,
            "format": sae.config.hyperparameters.get("format"),
        }
        for sae, place in zip(saes, facts.places, strict=True)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "hardware": hardware(),
        "devices": ["cpu"],
        "threads": [torch.get_num_threads()],
        "members": len(saes),
        "status": ADOPTED,
        "began": facts.began,
        "ended": time.time(),
        "origin": origin,
    }


def _known(saes: list[Sae], facts: Facts) -> dict[str, Any]:
    points = sorted({sae.config.hook for sae in saes})
    return {
        "schema_version": SCHEMA_VERSION,
        "sweep": facts.sweep.model_dump(mode="json"),
        "stores": {hook: str(store.path) for hook, store in facts.stores.items()},
        "known": [],
        "recipe": None if facts.recipe is None else facts.recipe.model_dump(mode="json"),
        "as_written": False,
        "units": {point: asdict(Units()) for point in points},
        "variance": {h: float(store.variance.mean()) for h, store in facts.stores.items()},
        "chunks": {},
    }
