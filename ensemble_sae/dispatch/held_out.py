"""What held-out rows said of a task's members, as rows of the members' table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.metrics.detectors import detect
from ensemble_sae.metrics.reconstruction import density_histogram
from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.sweep import Member
from ensemble_sae.train import FunctionalEnsemble
from ensemble_sae.train.evaluate import Evaluation
from ensemble_sae.train.health import ALIVE
from ensemble_sae.train.stacking import unstack


def features(ids: list[int], found: Evaluation) -> Tensors:
    """The tensors of a features file; columns beyond a member's own features are padding."""
    return {
        "members": torch.tensor(ids),
        "rows": torch.tensor(found.rows),
        "firing": found.firing,
        "strength": found.strength,
    }


def ended(members: Sequence[Member], ensemble: FunctionalEnsemble) -> list[dict[str, Any]]:
    """One row per member: how its training ended."""
    finished = ensemble.health.finished_at.tolist()
    setpoint, rows = ensemble.mechanisms.setpoint, []
    for k, member in enumerate(members):
        row: dict[str, Any] = {"id": member.id}
        # Not by the stack: who else is in it depends on the number of devices.
        if setpoint is not None and ensemble.dynamics[k].target_l0 is not None:
            row["penalty_factor"] = float(setpoint.factor[k])
        if finished[k] != ALIVE:
            row["finished_at"] = finished[k]
        rows.append(row)
    return rows


def table_rows(
    members: Sequence[Member], ensemble: FunctionalEnsemble, found: Evaluation
) -> list[dict[str, Any]]:
    """One row per member: held-out metrics, findings, and how its training ended."""
    dictionaries = _dictionaries(ensemble)
    rows = []
    for k, (member, row) in enumerate(zip(members, ended(members, ensemble), strict=True)):
        firing = found.firing[k, : member.n_dict]  # what lies beyond is padding
        l0, fvu = float(found.l0[k]), float(found.fvu[k])
        atoms = None if dictionaries is None else dictionaries[k][: member.n_dict]
        findings = detect(atoms, firing, found.rows, l0, fvu)
        row |= {
            "fvu": fvu,
            "l0": l0,
            "dead": float((firing == 0).double().mean()),
            "density_histogram": density_histogram(firing[None], found.rows)[0].tolist(),
            **asdict(findings),
            "flags": ", ".join(findings.flags),
        }
        rows.append(row)
    return rows


def _dictionaries(ensemble: FunctionalEnsemble) -> list[Tensor] | None:
    """Each member's directions, by the params that are evaluated; None where it names none."""
    dictionary = optional(ensemble.signature, "dictionary")
    if dictionary is None:
        return None
    params = unstack(ensemble.evaluated(), ensemble.size)
    buffers = unstack(ensemble.buffers, ensemble.size)
    return [dictionary(*member) for member in zip(params, buffers, strict=True)]
