"""Starting worker processes, each with the environment that its device wants."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_byte
from multiprocessing.connection import Connection
from typing import Any

from ensemble_sae.dispatch import worker
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
        self.process = context.Process(
            target=worker.main,
            args=(theirs, self._stop, spec),
            name=f"ensemble-sae {spec.device.name}",
            daemon=True,
        )
        with _environment(spec.device):
            self.process.start()
        theirs.close()  # so that the pipe ends when the worker does

    @property
    def waits(self) -> tuple[Connection, int]:
        """What `multiprocessing.connection.wait` should watch: messages, and the death."""
        return self.pipe, self.process.sentinel

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


@contextmanager
def _environment(device: Device) -> Iterator[None]:
    """A spawned process takes over the environment of the moment in which it starts."""
    wanted = {"OMP_NUM_THREADS": str(device.threads), "MKL_NUM_THREADS": str(device.threads)}
    if device.kind == "cpu":
        given = os.environ.get("GLIBC_TUNABLES")
        wanted["GLIBC_TUNABLES"] = f"{ALLOCATOR}:{given}" if given else ALLOCATOR
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
