"""One worker of `scaling.py`, in a process of its own: `python scaling_worker.py`, a job on stdin.

It makes its members, steps them, saves them once, and says how much memory that took. Told to go on
(another line on stdin), it times steps; between them it measures the device's speeds, so that what
disturbs the one disturbs the other. Answers are lines of JSON on stdout.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peak import peak_bytes
from torch import Tensor

from ensemble_sae.dispatch import memory
from ensemble_sae.dispatch.cost import Speeds, Stack, work_of
from ensemble_sae.dispatch.speeds import Probes
from ensemble_sae.files import write_tensors
from ensemble_sae.kernels.choice import Kernel
from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors
from ensemble_sae.signatures.relu import Untied
from ensemble_sae.train import FunctionalEnsemble

LR = 1e-7  # so small that the density stays
PROBE_S, TURN_S = 0.004, 0.04
LOOKED_AT = 2**16  # scores, to find the bias that leaves a share of them positive


def members(job: dict[str, Any], rows: Tensor) -> list[tuple[Tensors, Tensors]]:
    """`untied` members of the job's shape and density."""
    found = []
    for index in range(job["members"]):
        draw = generator(0, "scaling", job["n_dict"], index)
        params, buffers = Untied.init(job["d"], job["n_dict"], generator=draw)
        scores = (rows @ params["encoder"].T).flatten()[:LOOKED_AT]
        params["encoder_bias"] -= torch.quantile(scores, 1 - job["density"])
        found.append((params, buffers))
    return found


def ensemble(
    first: list[tuple[Tensors, Tensors]], kernel: Kernel, rows: int, device: torch.device
) -> FunctionalEnsemble:
    """The members in a stack, as a worker makes it."""
    return FunctionalEnsemble.from_members(
        Untied, first, lr=LR, device=device, batch_size=rows, kernel=kernel
    )


def stack_of(job: dict[str, Any], density: float) -> Stack:
    """The job as the cost model sees it."""
    d, n_dict, rows = job["d"], job["n_dict"], job["rows"]
    flop, parameters = 10.0 * rows * n_dict * d, 2 * n_dict * d + n_dict
    kind = torch.device(job["device"]).type
    return Stack(job["members"], rows, n_dict, d, flop, parameters, job["kernel"], density, kind)


def train_and_save(job: dict[str, Any], batches: list[Tensor]) -> FunctionalEnsemble:
    """Some steps and a checkpoint's file, with all that a worker holds on the way."""
    device = batches[0].device
    first = members(job, batches[0].cpu())
    made = ensemble(first, job["kernel"], job["rows"], device)
    del first
    for batch in batches:
        made.step(batch)
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder, "part.safetensors"), made.state_dict())
    return made


def warm_up(device: torch.device) -> None:
    """What is loaded at the first step of either kernel, before memory is compared."""
    row = torch.zeros(1, 2, device=device)
    kernels: list[Kernel] = ["dense", "sparse"]
    for kernel in kernels:
        tiny = {"members": 1, "d": 2, "n_dict": 2, "density": 0.5}
        ensemble(members(tiny, row.cpu()), kernel, 1, device).step(row)


def time_steps(made: FunctionalEnsemble, batches: list[Tensor], job: dict[str, Any]) -> list[Any]:
    """Rounds of `[seconds per step, the speeds around it]`."""
    probes = Probes(made.device)
    steps = max(1, round(TURN_S / _seconds(made, batches, 1)))
    rounds: list[Any] = []
    end = time.perf_counter() + job["seconds"]
    while len(rounds) < job["rounds"] or time.perf_counter() < end:
        speeds = probes.speeds(PROBE_S)
        made.step(batches[0])  # after the probes its memory is in no cache
        rounds.append([_seconds(made, batches, steps), speeds])
    return rounds


def _seconds(made: FunctionalEnsemble, batches: list[Tensor], steps: int) -> float:
    """The best of some steps, as the speeds are the best of some tries."""
    times = []
    for index in range(steps):
        _wait(made.device)
        began = time.perf_counter()
        made.step(batches[index % len(batches)])
        _wait(made.device)
        times.append(time.perf_counter() - began)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def work(job: dict[str, Any], go: Any) -> dict[str, Any]:
    """The job's answer; `go` is called when all memory is taken, and returns when to be timed."""
    device = torch.device(job["device"])
    torch.set_num_threads(job["threads"])
    draw = generator(0, "scaling rows", job["d"])
    batches = [torch.randn(job["rows"], job["d"], generator=draw).to(device) for _ in range(4)]
    warm_up(device)
    base = peak_bytes(device)
    made = train_and_save(job, batches)
    peak = peak_bytes(device) - base
    go()
    rounds = time_steps(made, batches, job)
    stack = stack_of(job, float(made.tally.means()["l0"].mean()) / job["n_dict"])
    predicted = [work_of(stack).seconds(Speeds(*speeds)) for _, speeds in rounds]
    return {
        "stack": asdict(stack),
        "base_bytes": base,
        "bytes": peak,
        "predicted_bytes": memory.needed([[stack]]),
        "seconds": [seconds for seconds, _ in rounds],
        "predicted_seconds": predicted,
        "speeds": [list(speeds) for _, speeds in rounds],
    }


def main() -> None:
    """Read a job, answer `ready`, wait for a line, answer with the result."""
    job = json.loads(sys.stdin.readline())

    def go() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    print(json.dumps(work(job, go)), flush=True)


if __name__ == "__main__":
    main()
