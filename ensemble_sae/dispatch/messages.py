"""What the dispatcher and its workers say to each other. Messages name chunks; none holds rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ensemble_sae.data.units import AnyUnits
from ensemble_sae.dispatch.devices import Device
from ensemble_sae.dispatch.planner import Task
from ensemble_sae.dispatch.schedule import Round
from ensemble_sae.errors import UserError
from ensemble_sae.run.checkpoint import Part
from ensemble_sae.sweep.schema import Train


@dataclass(frozen=True)
class Source:
    """Where the rows of one hook are, in which units they are trained on, how much they vary."""

    stores: tuple[str, ...]  # folders: one per hook point, in the order in which rows are joined
    units: AnyUnits
    variance: float  # of what is reconstructed, mean over dimensions, in these units
    steps: int | None = None  # of the whole training, where that is known


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker is told when it starts."""

    device: Device
    tasks: tuple[Task, ...]
    train: Train
    sources: Mapping[str, Source]  # by hook, as members name it
    checkpoint: str | None  # folder to continue from


# To a worker.


@dataclass(frozen=True)
class TrainRound:
    """Train on this round's chunks; `then` is fetched meanwhile."""

    round: Round
    then: Round | None


@dataclass(frozen=True)
class Save:
    """Write the state of all groups into this folder."""

    folder: str


@dataclass(frozen=True)
class Evaluate:
    """Evaluate all groups on held-out rows; write the features' statistics into this folder."""

    folder: str


@dataclass(frozen=True)
class Stop:
    """End."""


# From a worker.


@dataclass(frozen=True)
class Ready:
    """The worker has built or restored its groups."""


@dataclass(frozen=True)
class Progress:
    """Rows trained on since the last message, and each task's running means, now and then."""

    rows: int
    sae_rows: int
    means: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundDone:
    """A round is trained: one row of metrics per member; who froze; seconds."""

    round: int
    rows: list[dict[str, Any]]
    frozen: Mapping[int, int]  # member id -> step
    busy_s: float
    stall_s: float


@dataclass(frozen=True)
class Paused:
    """Instead of `RoundDone` or `Evaluated`: the worker was told to stop after its step."""


@dataclass(frozen=True)
class Saved:
    """The parts that were written."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Evaluated:
    """One row of held-out metrics per member."""

    rows: list[dict[str, Any]]
    peak_bytes: int


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on: what happened, for people."""

    error: UserError | None  # other exceptions may not survive the way: they come as text
    what: str
    trace: str
