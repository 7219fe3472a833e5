"""What a run must remember to go on exactly: the resolved sweep, its stores and scales."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import Units
from ensemble_sae.engine import results
from ensemble_sae.engine.prepared import Prepared
from ensemble_sae.errors import UserError
from ensemble_sae.files import write_json
from ensemble_sae.run import Checkpoint, Layout
from ensemble_sae.run.layout import SCHEMA_VERSION, read_versioned
from ensemble_sae.sweep import Sweep


class Record:
    """`sweep.json` (written once) and `run.json` (the status) of a run."""

    def __init__(self, layout: Layout, units: Mapping[str, Units], ready: Prepared) -> None:
        self.units = dict(units)
        self._layout = layout
        self._began = time.time()
        self._known: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "versions": versions(),
            "devices": [device.name for device in ready.plan.devices],
            "threads": [device.threads for device in ready.plan.devices],
            "members": len(ready.members),
        }

    @classmethod
    def start_or_continue(
        cls,
        layout: Layout,
        ready: Prepared,
        stores: Mapping[str, ChunkStore],
        checkpoint: Checkpoint | None,
    ) -> Record:
        """Write `sweep.json` and `members.json` of a new run, or read the old one's units.

        The statistics of a store that is still being harvested move, so the units that a run
        began with are its units to the end.
        """
        if layout.exists():
            written: Any = read_versioned(layout.sweep)
            units = {
                hook: Units(u["scale"], tuple(u["shift"])) for hook, u in written["units"].items()
            }
            record = cls(layout, units, ready)
        else:
            normalise = ready.sweep.activations.normalise
            units = {hook: Units.of(store, normalise) for hook, store in stores.items()}
            record = cls(layout, units, ready)
        record._write_status("running")
        results.write_members(
            layout, ready.groups, {member.id: "training" for member in ready.members}
        )
        if not layout.exists():
            write_json(
                layout.sweep,
                {
                    "schema_version": SCHEMA_VERSION,
                    "sweep": ready.sweep.model_dump(mode="json"),
                    "stores": {hook: str(store.path) for hook, store in stores.items()},
                    "units": {hook: asdict(units) for hook, units in record.units.items()},
                },
            )
        return record

    def end(self, status: str, **facts: Any) -> None:
        """Write how the run ended."""
        self._write_status(status, ended=time.time(), **facts)

    def _write_status(self, status: str, **facts: Any) -> None:
        values = {**self._known, "status": status, "began": self._began, **facts}
        write_json(self._layout.status, values)


def same_sweep(layout: Layout, sweep: Sweep) -> None:
    """A run goes on only with the sweep that it began with.

    Raises:
        UserError: names the first key that differs, and both values.
    """
    written: Any = read_versioned(layout.sweep)
    there, given = written["sweep"], sweep.model_dump(mode="json")
    for section, values in given.items():
        before = there.get(section)
        if before == values:
            continue
        where, old, new = section, before, values
        if isinstance(values, dict) and isinstance(before, dict):
            key = next(k for k in values if before.get(k) != values[k])
            where, old, new = f"{section}.{key}", before.get(key), values[key]
        raise UserError(
            "This run was begun with another sweep.",
            where=f"{layout.sweep}: {where}",
            found=repr(new),
            allowed=repr(old),
            next_step="resume with the same sweep file, or begin a new run with another --run",
        )


def versions() -> dict[str, str]:
    """What this runs on, for the record."""
    from importlib.metadata import version

    packages = ("ensemble-sae", "torch", "torchopt", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
