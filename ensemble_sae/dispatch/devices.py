"""Which devices a sweep runs on, and what they have."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass

import torch

from ensemble_sae.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Where one worker computes."""

    kind: str  # "cuda" or "cpu"
    index: int
    memory: int  # bytes that a worker may plan with
    threads: int  # of the worker's tensor operations

    @property
    def name(self) -> str:
        """`cuda:0`, `cpu:1`: as people and messages name it."""
        return f"{self.kind}:{self.index}"

    @property
    def torch(self) -> torch.device:
        """The torch device."""
        return torch.device("cuda", self.index) if self.kind == "cuda" else torch.device("cpu")


def choose(gpus: int | None, devices: str | None, threads: int | None = None) -> list[Device]:
    """The devices for `--gpus N` or `--devices cuda:0,cuda:1 | cpu:2`; otherwise what is there.

    Without either: every GPU, or else one CPU worker per core.

    Raises:
        UserError: more is asked for than there is; says what was found and what would run here.
    """
    if gpus is not None and devices is not None:
        raise UserError("--gpus and --devices exclude each other.")
    found = torch.cuda.device_count()
    if devices is not None:
        return _listed(devices, found, threads)
    if gpus is None:
        return [_cuda(i) for i in range(found)] or _cpus(_cores(), threads)
    if gpus < 1:
        raise UserError(
            "--gpus counts GPUs.", found=str(gpus), allowed="1 or more; --devices cpu:N for CPUs"
        )
    if gpus > found:
        raise _too_many(f"--gpus {gpus}", found)
    return [_cuda(i) for i in range(gpus)]


def _listed(text: str, found: int, threads: int | None) -> list[Device]:
    chosen: list[Device] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(?:cuda:(\d+)|cpu(?::(\d+))?)\s*", word)
        if not match:
            raise UserError(
                "A device is not understood.",
                where="--devices",
                found=repr(word),
                allowed="cuda:0,cuda:1 or cpu:2 (two CPU workers)",
            )
        if match[1] is not None:
            if int(match[1]) >= found:
                raise _too_many(f"--devices {text}", found)
            chosen.append(_cuda(int(match[1])))
        else:
            chosen += _cpus(int(match[2] or 1), threads)
    if len({device.name for device in chosen}) < len(chosen) or not chosen:
        raise UserError("Every device can be named once.", where="--devices", found=text)
    return chosen


def _too_many(asked: str, found: int) -> UserError:
    here = f"--gpus {found}" if found else f"--devices cpu:{_cores()}"
    has = ", ".join(torch.cuda.get_device_name(i) for i in range(found))
    return UserError(
        "There are fewer GPUs than asked for.",
        found=f"{asked}, but this machine has {found} CUDA GPUs{f' ({has})' if has else ''}"
        f" and {_cores()} CPU cores",
        next_step=f"python -m ensemble_sae.big_sweep {here}",
    )


def _cuda(index: int) -> Device:
    free, _ = torch.cuda.mem_get_info(index)
    return Device("cuda", index, int(free * 0.9), max(1, _cores() // torch.cuda.device_count()))


def _cpus(workers: int, threads: int | None) -> list[Device]:
    if workers < 1:
        raise UserError("A sweep needs at least one worker.", where="--devices", found="cpu:0")
    each = threads or max(1, _cores() // workers)
    memory = int(_free_memory() * 0.8) // workers
    return [Device("cpu", i, memory, each) for i in range(workers)]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware() -> str:
    """What this machine computes with, in words: `2 x NVIDIA H200; AMD EPYC, 16 cores`."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    words = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    return "; ".join([*words, f"{_processor()}, {_cores()} cores"])


def _processor() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _free_memory() -> int:
    if sys.platform == "linux":
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return 8 * GIB  # elsewhere the operating system does not say: assume a laptop
