"""Members of several sizes: a stack for each size, or one stack that is padded?

    python benchmarks/padding.py

Times one step of both, interleaved, best of many, and prints what `dispatch/padding.py` decides.
"""

from __future__ import annotations

import time

import torch

from ensemble_sae.dispatch.padding import STACK_FLOP
from ensemble_sae.randomness import generator
from ensemble_sae.signatures.masked import Masked
from ensemble_sae.train import FunctionalEnsemble

D, BATCH, TIMES = 128, 256, 30
CASES = ([32, 64, 128], [64, 128, 256], [128, 256, 512], [256, 512, 1024], [512, 1024, 2048])


def stack(sizes: list[int], padded_to: int | None = None) -> FunctionalEnsemble:
    """One member of each size."""
    members = [Masked.init(D, n, generator=generator(0, "padding", n)) for n in sizes]
    if padded_to is not None:
        members = [Masked.pad(*member, padded_to) for member in members]
    return FunctionalEnsemble.from_members(Masked, members, lr=1e-3, batch_size=BATCH)


def best_ms(contestants: list[list[FunctionalEnsemble]], batch: torch.Tensor) -> list[float]:
    """Milliseconds of one step of each contestant, taken in turn."""
    best = [float("inf")] * len(contestants)
    for _ in range(TIMES):
        for index, ensembles in enumerate(contestants):
            began = time.perf_counter()
            for ensemble in ensembles:
                ensemble.step(batch)
            best[index] = min(best[index], 1e3 * (time.perf_counter() - began))
    return best


def main() -> None:
    """Print a line per case."""
    torch.set_num_threads(1)
    batch = torch.randn(BATCH, D, generator=generator(0, "rows"))
    print(f"d {D}, batches of {BATCH} rows, one core")
    print(f"{'sizes':>18}  {'apart':>9}  {'padded':>9}  faster   the model on the two largest")
    for sizes in CASES:
        apart, padded = best_ms([[stack([n]) for n in sizes], [stack(sizes, sizes[-1])]], batch)
        extra = 10 * BATCH * D * (sizes[-1] - sizes[-2])
        verdict = "padded" if extra < STACK_FLOP["cpu"] else "apart"
        faster = "padded" if padded < apart else "apart"
        shown = ", ".join(map(str, sizes))
        print(f"{shown:>18}  {apart:6.1f} ms  {padded:6.1f} ms  {faster:6}   {verdict}")


if __name__ == "__main__":
    main()
