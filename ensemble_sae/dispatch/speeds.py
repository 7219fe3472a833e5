"""How fast a device is, measured in about a second: what turns counts of work into seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ensemble_sae.dispatch.cost import Speeds
from ensemble_sae.dispatch.devices import Device
from ensemble_sae.randomness import generator
from ensemble_sae.signatures.relu import Untied
from ensemble_sae.train import FunctionalEnsemble

# Side of the squares that are multiplied; bytes that fit the cache, and bytes that do not.
SIZES = {"cpu": (512, 2**20, 64 * 2**20), "cuda": (8192, 2**24, 2**30)}
SECONDS = 0.25  # for each of the four
LEAST = 3  # times that each is tried


class Probes:
    """The four things that are timed on a device; the arrays are made once."""

    def __init__(self, device: torch.device) -> None:
        side, small, large = SIZES.get(device.type, SIZES["cuda"])
        self.device = device
        self._square = torch.randn(3, side, side, device=device)
        self._near, self._far = (
            torch.zeros(2, size // 8, device=device) for size in (small, large)
        )
        self._tiny = _tiny_stack(device)
        self._row = torch.zeros(1, 1, device=device)
        self._work = {
            "product": 2 * side**3,
            "near": 12 * self._near.shape[1],
            "far": 12 * self._far.shape[1],
            "step": 1,
        }

    def product(self) -> None:
        """A matrix product into memory that is there."""
        torch.mm(self._square[0], self._square[1], out=self._square[2])

    def near(self) -> None:
        """A pass over arrays in the cache: two are read, one is written."""
        self._near[0].add_(self._near[1])

    def far(self) -> None:
        """A pass over arrays in memory."""
        self._far[0].add_(self._far[1])

    def step(self) -> None:
        """A step of a stack that has next to nothing to compute."""
        self._tiny.step(self._row)

    def rate(self, name: str, seconds: float = 0.0) -> float:
        """The best rate within some seconds: FLOP, bytes or steps per second."""
        probe: Callable[[], Any] = getattr(self, name)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < LEAST or time.perf_counter() < end:
            began = time.perf_counter()
            probe()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - began)
        return self._work[name] / min(times)

    def speeds(self, seconds: float = SECONDS) -> Speeds:
        """All four, each in some seconds."""
        rates = [self.rate(name, seconds) for name in self._work]
        return Speeds(rates[0], rates[1], rates[2], 1 / rates[3])


def _tiny_stack(device: torch.device) -> FunctionalEnsemble:
    member = Untied.init(1, 1, generator=generator(0, "tiny"))
    return FunctionalEnsemble.from_members(
        Untied, [member], device=device, batch_size=1, kernel="dense"
    )


def measure(device: Device, together: int = 1) -> Speeds:
    """The speeds of one worker while `together` of them compute on one machine.

    CPU workers share caches and memory, so as many threads do the same at the same time; the
    slowest counts. The time of a tiny step is that of one alone: workers are processes, which
    share no interpreter.
    """
    together = together if device.kind == "cpu" else 1

    before = torch.get_num_threads()
    # Every thread has its own number of threads for tensor operations.
    with ThreadPoolExecutor(together, "", torch.set_num_threads, (device.threads,)) as pool:
        all_probes = list(pool.map(lambda _: Probes(device.torch), range(together)))

        def slowest(name: str) -> float:
            return min(pool.map(lambda p: p.rate(name, SECONDS), all_probes))

        speeds = Speeds(slowest("product"), slowest("near"), slowest("far"), 0.0)
    torch.set_num_threads(device.threads)
    try:
        return speeds._replace(step=1 / all_probes[0].rate("step", SECONDS))
    finally:
        torch.set_num_threads(before)
