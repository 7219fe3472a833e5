"""A signature that springs at a chosen step of a worker, as the environment says.

TRAP="action@step" or "action@step@file": the file is made, so that it happens once. Steps are
counted from the start of the worker's process. PACE_MS makes every step that slow.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ensemble_sae.signatures import BUILTIN, Tensors

Tied = BUILTIN["tied"]


class OddError(Exception):
    """Cannot be unpickled: its `__init__` wants what pickle does not keep."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one} {two}")


def _odd() -> None:
    raise OddError(1, 2)


ACTIONS: dict[str, Callable[[], Any]] = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
    "odd": _odd,
    "sleep": lambda: time.sleep(60),
    "SIGINT": lambda: os.kill(os.getppid(), signal.SIGINT),
    "SIGTERM": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "SIGKILL": lambda: os.kill(os.getppid(), signal.SIGKILL),
}


steps = itertools.count(1)


def spring() -> None:
    """One step more: spring the trap if it is the one."""
    now = next(steps)
    time.sleep(float(os.environ.get("PACE_MS", "0")) / 1000)
    action, _, rest = os.environ.get("TRAP", "").partition("@")
    step, _, once = rest.partition("@")
    if action and now == int(step) and not (once and Path(once).exists()):
        if once:
            Path(once).touch()
        ACTIONS[action]()


class Trapped(Tied):
    """`tied`, with a trap in its loss."""

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> Any:
        spring()
        return Tied.loss(params, buffers, batch)
