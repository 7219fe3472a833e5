"""What a run must remember to go on exactly: the resolved sweep, its stores, scales, order."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ensemble_sae.data.hooks import Hook
from ensemble_sae.data.statistics import RunningStatistics
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import Units, join_units
from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.dispatch.messages import Source
from ensemble_sae.engine import results
from ensemble_sae.engine.prepared import Prepared
from ensemble_sae.errors import UserError
from ensemble_sae.files import write_json, write_tensors
from ensemble_sae.run import Layout
from ensemble_sae.run.layout import SCHEMA_VERSION, read_versioned
from ensemble_sae.sweep import Sweep


@dataclass(frozen=True)
class Beginning:
    """What is found when a run begins and stays so to its end, whatever becomes of the stores.

    Attributes:
        as_written: the first epoch takes the chunks in the order in which they are harvested.
        units: by hook point, what the rows are trained in.
        variance: by hook point, mean over dimensions, in these units.
        chunks: by hook point, a checksum of the store's list of chunks; empty where it still grows.
    """

    as_written: bool
    units: Mapping[str, Units]
    variance: Mapping[str, float]
    chunks: Mapping[str, str]

    @classmethod
    def of(cls, ready: Prepared, stores: Mapping[str, ChunkStore], as_written: bool) -> Beginning:
        """Of a new run. A harvest beside the training moves a store's statistics, so a run that
        takes the chunks as they are written takes the statistics of the first one alone."""
        seen = {h: _first_chunk(s) if as_written else s for h, s in stores.items()}
        units = {h: Units.of(s, ready.sweep.activations.normalise) for h, s in seen.items()}
        variance = {h: float(s.variance.mean()) / units[h].scale ** 2 for h, s in seen.items()}
        chunks = {} if as_written else {hook: _digest(store) for hook, store in stores.items()}
        return cls(as_written, units, variance, chunks)

    @classmethod
    def read(cls, layout: Layout) -> Beginning:
        """Of the run that is there."""
        known: Any = read_versioned(layout.sweep)
        units = {hook: Units(u["scale"], tuple(u["shift"])) for hook, u in known["units"].items()}
        return cls(known["as_written"], units, known["variance"], known["chunks"])

    def source(self, hook: str, stores: Mapping[str, ChunkStore]) -> Source:
        """What a worker must know of a hook that members name: one point, or several joined.

        The variance is that of what is reconstructed: the mean over its dimensions.

        Args:
            stores: by hook point.
        """
        parsed = Hook.parse(hook)
        widths = {point: stores[point].d_activation for point in parsed.points}
        units = join_units(
            [self.units[point] for point in parsed.points],
            [widths[point] for point in parsed.points],
        )
        first, *more = parsed.measured
        variance = self.variance[first]
        if more:  # the division need not give back the bits of a single one
            weighted = sum(self.variance[p] * widths[p] for p in parsed.measured)
            variance = weighted / sum(widths[p] for p in parsed.measured)
        return Source(tuple(str(stores[p].path) for p in parsed.points), units, variance)

    def check(self, stores: Mapping[str, ChunkStore]) -> None:
        """A run goes on only with the chunks that it began with.

        Raises:
            UserError: names the store that has changed.
        """
        for hook, store in stores.items():
            if self.chunks.get(hook, _digest(store)) != _digest(store):
                raise UserError(
                    "This store has changed since the run began: it has other chunks now.",
                    where=str(store.path),
                    next_step="bring the old store back, or begin a new run in another folder",
                )


class Record:
    """`sweep.json` (written once) and `run.json` (the status) of a run."""

    def __init__(self, layout: Layout, ready: Prepared) -> None:
        self._layout, self._ready = layout, ready
        self._began = time.time()
        self._known: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "versions": versions(),
            "hardware": hardware(),
            "devices": [device.name for device in ready.plan.devices],
            "threads": [device.threads for device in ready.plan.devices],
            "members": len(ready.members),
        }

    def start(self, beginning: Beginning, stores: Mapping[str, ChunkStore]) -> None:
        """Note that the run goes on; `sweep.json`, which makes the folder a run, comes last."""
        self._write_status("running")
        results.write_members(
            self._layout,
            self._ready.whole_groups,
            {member.id: "training" for member in self._ready.members},
        )
        if self._layout.exists():
            return
        known = {hook: store for hook, store in stores.items() if store.truth is not None}
        for store in known.values():
            assert store.truth is not None
            self._layout.truth.mkdir(exist_ok=True)
            path = self._layout.truth / f"{store.path.name}.safetensors"
            write_tensors(path, store.truth._asdict())
        write_json(
            self._layout.sweep,
            {
                "schema_version": SCHEMA_VERSION,
                "sweep": self._ready.sweep.model_dump(mode="json"),
                "stores": {hook: str(store.path) for hook, store in stores.items()},
                "known": list(known),  # hooks whose rows are made of known features
                **asdict(beginning),
            },
        )

    def end(self, status: str, **facts: Any) -> None:
        """Write how the run ended."""
        self._write_status(status, ended=time.time(), **facts)

    def _write_status(self, status: str, **facts: Any) -> None:
        values = {**self._known, "status": status, "began": self._began, **facts}
        write_json(self._layout.status, values)


def is_finished(layout: Layout) -> bool:
    """Whether the run in this folder came to its end."""
    return read_versioned(layout.status).get("status") == "finished" and layout.table.is_file()


def same_sweep(layout: Layout, sweep: Sweep) -> None:
    """A run goes on only with the sweep that it began with.

    Raises:
        UserError: names the first key that differs, and both values; or the run was adopted.
    """
    if read_versioned(layout.status).get("status") == "adopted":
        raise UserError(
            "This run was adopted: others trained its members, and there is nothing to train.",
            where=str(layout.folder),
            next_step=f"python -m ensemble_sae.evaluate {layout.folder}",
        )
    written: Any = read_versioned(layout.sweep)
    # What the report shows changes nothing of the training.
    there, given = written["sweep"], sweep.model_dump(mode="json", exclude={"report"})
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
            next_step="resume with the same sweep file, or begin a new run in another folder",
        )


def _first_chunk(store: ChunkStore) -> ChunkStore:
    """The store with the statistics of its first training chunk."""
    statistics = RunningStatistics.empty(store.d_activation)
    statistics.add(store.activations(store.chunks()[0].index))
    values = {
        "mean": statistics.mean.tolist(),
        "variance": statistics.variance.tolist(),
        "scale": statistics.scale,
    }
    return ChunkStore(store.path, store.meta.model_copy(update=values))


def _digest(store: ChunkStore) -> str:
    listing = "".join(f"{chunk.sha256}{chunk.held_out}" for chunk in store.meta.chunks)
    return hashlib.sha256(listing.encode()).hexdigest()


def versions() -> dict[str, str]:
    """What this runs on, for the record."""
    from importlib.metadata import version

    packages = ("ensemble-sae", "torch", "torchopt", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
