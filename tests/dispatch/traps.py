"""A signature that springs at a chosen step of a worker, as the environment says.

TRAP="action@step" or "action@step@file": the file is made, so that it happens once. Steps are
counted from the start of the worker's process. PACE_MS makes every step that slow.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.tied import Tied


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


class Trapped(Tied):
    """`tied`, with a trap in its loss."""

    steps = 0

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: Tensor) -> Any:
        Trapped.steps += 1
        time.sleep(float(os.environ.get("PACE_MS", "0")) / 1000)
        action, _, rest = os.environ.get("TRAP", "").partition("@")
        step, _, once = rest.partition("@")
        if action and Trapped.steps == int(step) and not (once and Path(once).exists()):
            if once:
                Path(once).touch()
            ACTIONS[action]()
        return Tied.loss(params, buffers, batch)
