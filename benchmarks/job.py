"""One job of the benchmark, in a process of its own: `python job.py JOB.json RESULT.json`.

`steps`    times contestants, interleaved, for several cases and numbers of members.
`loading`  drives a chunk feed as a training worker does, and tells how long it waited.
`memory`   the largest memory of one contestant.

The process's environment (threads, allocator) is chosen by whoever starts it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from contestants import TRAINERS, Ensemble, Shape, Trainer
from measure import measure_steps
from peak import peak_bytes

from ensemble_sae.data.feed import Batches, ChunkFeed, row_order
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import Units

CHUNKS = 4


def measure_loading(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Train on a temporary store, chunk by chunk, with the next one fetched ahead."""
    shape, members = Shape.of(job["shape"]), job["members"]
    trainer = Ensemble(shape, members, device, "auto", lr=0.0)
    batches = shape.batches(job["chunk_batches"], torch.device("cpu"))
    trainer.settle(batches[0].to(device))
    for batch in batches[:2]:
        trainer.step(batch.to(device))  # takes its memory before the clock starts
    with tempfile.TemporaryDirectory() as folder:
        rows = len(batches) * shape.batch
        values = torch.cat(batches).repeat(CHUNKS, 1)
        store = ChunkStore.write(folder, values, chunk_rows=rows, held_out=0, dtype="float16")
        times = _drive(store, trainer, shape.batch, device)
    return {
        "shape": shape.name,
        "active": trainer.active(),
        "members": members,
        "chunks": CHUNKS,
        "chunk_mib": rows * shape.d * 2 / 2**20,
        **times,
    }


def _drive(
    store: ChunkStore, trainer: Trainer, batch_size: int, device: torch.device
) -> dict[str, float]:
    """As a worker goes through its rounds. Shares are of the time after the first chunk came."""
    feed, units = ChunkFeed(store, device), Units.of(store, "scale")
    chunks = [chunk.index for chunk in store.chunks()]
    gathering = 0.0
    feed.prefetch(chunks[0])
    feed.take(chunks[0])
    first_wait = feed.stall_s
    began = time.perf_counter()
    for place, chunk in enumerate(chunks):
        taken = feed.take(chunk)
        for following in chunks[place + 1 : place + 2]:
            feed.prefetch(following)
        batches = Batches(taken, row_order(len(taken), 0, 0, chunk), batch_size, units)
        for index in range(len(batches)):
            before = time.perf_counter()
            batch = batches[index]
            gathering += time.perf_counter() - before
            trainer.step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    total = time.perf_counter() - began
    feed.close()
    return {
        "seconds": total,
        "first_wait_s": first_wait,
        "stall_share": (feed.stall_s - first_wait) / total,
        "gather_share": gathering / total,
    }


def measure_memory(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The most memory that a contestant needed, above that of a process that only imports."""
    shape, members, name = Shape.of(job["shape"]), job["members"], job["contestant"]
    batches = shape.batches(2, device)
    before = peak_bytes(device)
    trainer = TRAINERS[name](shape, members, device, lr=0.0)
    for batch in batches * 2:
        trainer.step(batch)
    weights = sum(t.numel() * t.element_size() for p in trainer.members() for t in p.values())
    return {
        "shape": shape.name,
        "members": members,
        "contestant": name,
        "above_start_mib": (peak_bytes(device) - before) / 2**20,
        "weights_mib": weights / 2**20,
    }


KINDS = {"steps": measure_steps, "loading": measure_loading, "memory": measure_memory}


def main(job_file: str, result_file: str) -> None:
    """Do the job of a file and write its result into another."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    result = KINDS[job["kind"]](job, torch.device(job["device"]))
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
