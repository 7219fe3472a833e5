"""An ensemble in one safetensors file: its state, and in the header what it takes to build it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.errors import CorruptFile
from ensemble_sae.files import open_tensors, write_tensors
from ensemble_sae.signatures import Tensors, name_of, resolve
from ensemble_sae.train.optimiser import Optimiser

if TYPE_CHECKING:
    from ensemble_sae.train.ensemble import FunctionalEnsemble

KEY = "ensemble"  # of the header's entry
SCHEMA_VERSION = 3


def save(ensemble: FunctionalEnsemble, path: Path) -> None:
    """Write an ensemble; it appears under its name when it is complete."""
    about = {
        "schema_version": SCHEMA_VERSION,
        "signature": name_of(ensemble.signature),
        "optimiser": asdict(ensemble.optimiser),
        "dynamics": [d.model_dump() for d in ensemble.dynamics],
        "batch_size": ensemble.batch_size,
        "kernel": ensemble.kernel,
        "precision": ensemble.precision,
        "seed": ensemble.seed,
        "steps": ensemble.steps,
    }
    write_tensors(path, ensemble.state_dict(), {KEY: json.dumps(about)})


def load(
    make: type[FunctionalEnsemble], path: Path, signature: type[Any] | None, device: str
) -> FunctionalEnsemble:
    """Read an ensemble that goes on exactly where it was saved.

    Args:
        signature: the class, where it is one of your own; built-in ones are found by name.

    Raises:
        UserError: no such file, or an unknown signature.
        CorruptFile: the file is damaged, or no ensemble, or of another schema.
    """
    file = open_tensors(path)
    about = _about(path, file.metadata())
    state = {name: file.get_tensor(name).to(device) for name in list(file.keys())}
    stored = about["optimiser"]
    ensemble = make(
        signature or resolve(about["signature"]),
        _part(state, "params/"),
        _part(state, "buffers/"),
        state["lr"].clone(),
        grad_clip=state["grad_clip"].clone(),
        optimiser=Optimiser(**{**stored, "betas": tuple(stored["betas"])}),
        dynamics=[Dynamics.model_validate(values) for values in about["dynamics"]],
        batch_size=about["batch_size"],
        kernel=about["kernel"],
        precision=about["precision"],
        seed=about["seed"],
        steps=about["steps"],
    )
    ensemble.load_state_dict(state)
    return ensemble


def _about(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((metadata or {})[KEY])
        version = about["schema_version"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CorruptFile(
            "This file holds no ensemble.",
            where=f"{path}: header entry {KEY!r}",
            found=repr(error),
            allowed="a file written by FunctionalEnsemble.save",
        ) from None
    if version > SCHEMA_VERSION:
        raise CorruptFile(
            "This ensemble was written by a newer version of ensemble-sae.",
            where=f"{path}: schema_version",
            found=str(version),
            allowed=f"up to {SCHEMA_VERSION}",
            next_step="pip install --upgrade ensemble-sae",
        )
    if version < SCHEMA_VERSION:
        raise CorruptFile(
            "This ensemble was written by an older version of ensemble-sae.",
            where=f"{path}: schema_version",
            found=str(version),
            allowed=str(SCHEMA_VERSION),
            next_step="load it with the version that wrote it",
        )
    return about


def _part(state: Tensors, prefix: str) -> Tensors:
    return {
        name.removeprefix(prefix): torch.clone(tensor)
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
