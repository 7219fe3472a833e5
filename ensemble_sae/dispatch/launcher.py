"""Starting worker processes, each with the environment that its device wants."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from ctypes import c_byte
from multiprocessing.connection import Connection
from typing import Any

from ensemble_sae.dispatch import child, worker
from ensemble_sae.dispatch.devices import Device
from ensemble_sae.dispatch.messages import WorkerSpec

# glibc gives large blocks back to the system when they are freed, so a step that allocates its
# temporaries anew spends half its time on page faults. These keep freed memory in the process.
ALLOCATOR = (
    "glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=8589934592:"
    "glibc.malloc.top_pad=268435456"
)


class WorkerProcess:
    """A running worker: its process, the pipe to it, and the byte that makes it pause."""

    def __init__(self, spec: WorkerSpec) -> None:
        context = multiprocessing.get_context("spawn")
        # A bare byte: a lock could be left held by a worker that is killed.
        self._stop: Any = context.RawValue(c_byte, 0)
        self.pipe, theirs = context.Pipe()
        with child.environment(_environment(spec.device)):
            self.process = child.start(
                worker.main, (theirs, self._stop, spec), f"worker on {spec.device.name}"
            )
        theirs.close()  # so that the pipe ends when the worker does
        self.gone = False

    @property
    def waits(self) -> tuple[Connection, int]:
        """What `multiprocessing.connection.wait` should watch: messages, and the death."""
        return self.pipe, self.process.sentinel

    def tell(self, message: Any) -> bool:
        """Send a message; False if the worker has died, which `heard` will notice too."""
        try:
            self.pipe.send(message)
            return True
        except OSError:
            return False

    def heard(self) -> Iterator[Any]:
        """What the worker has said since the last call; sets `gone` where its pipe ends."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError):  # also in the middle of a message
            self.gone = True

    def pause(self) -> None:
        """Let the worker finish its step and wait."""
        self._stop.value = 1

    def end(self, patience_s: float = 5.0) -> None:
        """Wait for the process to end; kill it if it does not."""
        self.process.join(patience_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _environment(device: Device) -> dict[str, str]:
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    wanted = dict.fromkeys(pools, str(device.threads))
    if device.kind == "cpu":
        given = os.environ.get("GLIBC_TUNABLES")
        wanted["GLIBC_TUNABLES"] = f"{ALLOCATOR}:{given}" if given else ALLOCATOR
    return wanted
