"""The table of `docs/kernels.md`: whole steps by kernel and density, against loop and limit.

    python benchmarks/kernels.py [--docs]

Members do not move (their learning rate is 0), so that densities stay what they are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from contestants import Contestant, DenseLimit, Ensemble, Loop, Shape
from measure import seconds_of
from readme import replace

from ensemble_sae.dispatch.launcher import ALLOCATOR
from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors, resolve

DOCS = Path(__file__).parent.parent / "docs" / "kernels.md"
CPU = torch.device("cpu")
SHAPES = {"large": (8, 512, 2048, 1024), "small": (32, 128, 256, 256)}
DENSITIES = {"untied": (0.005, 0.02, 0.08, 0.12), "topk": (0.02,), "batchtopk": (0.02,)}
HEADER = (
    "| shape | signature | active | sparse, of limit | dense, of limit "
    "| sparse, over loop | dense, over loop |\n|---|---|--:|--:|--:|--:|--:|"
)
TURN_S = 0.3


@dataclass(frozen=True)
class Still(Shape):
    """Members with a share of their features active, on rows from a normal distribution."""

    density: float

    def initial(self, members: int) -> list[tuple[Tensors, Tensors]]:
        return [self._member(index) for index in range(members)]

    def _member(self, index: int) -> tuple[Tensors, Tensors]:
        (n_dict,), signature = self.dicts, resolve(self.signature)
        draw = generator(0, "benchmark", n_dict, index)
        if self.signature != "untied":
            k = float(round(self.density * n_dict))
            return signature.init(self.d, n_dict, generator=draw, k=k)
        params, buffers = signature.init(self.d, n_dict, generator=draw)
        params["encoder_bias"].fill_(-statistics.NormalDist().inv_cdf(1 - self.density))
        return params, buffers


def ratios(shape: Still, members: int, rounds: int) -> list[float]:
    """limit / sparse, limit / dense, loop / sparse, loop / dense: medians within rounds."""
    (batch,) = shape.batches(1, CPU)
    field: dict[str, Contestant] = {
        "sparse": Ensemble(shape, members, CPU, "sparse", lr=0.0),
        "dense": Ensemble(shape, members, CPU, "dense", lr=0.0),
        "loop": Loop(shape, members, CPU, lr=0.0),
        "limit": DenseLimit(shape, members, CPU),
    }
    limit = field["limit"]
    steps = max(1, round(TURN_S / seconds_of(lambda: limit.step(batch), 1, CPU)))
    times: dict[str, list[float]] = {name: [] for name in field}
    for turn in range(rounds + 1):
        for name, contestant in field.items():
            spent = seconds_of(partial(contestant.step, batch), steps, CPU)
            if turn:  # the first is the warm-up
                times[name].append(spent)
    return [
        statistics.median(a / b for a, b in zip(times[over], times[kernel], strict=True))
        for over in ("limit", "loop")
        for kernel in ("sparse", "dense")
    ]


def line(name: str, signature: str, density: float, found: list[float]) -> str:
    """A row of the table."""
    numbers = " | ".join(f"{value:.2f}x" for value in found)
    return f"| {name} | `{signature}` | {100 * density:g}% | {numbers} |"


def main() -> None:
    """Print the table; with --docs write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--docs", action="store_true", help=f"write it into {DOCS.name}")
    arguments = parser.parse_args()
    lines = [HEADER]
    for name, (members, d, n_dict, batch) in SHAPES.items():
        for signature, densities in DENSITIES.items():
            for density in densities:
                shape = Still(name, d, (n_dict,), batch, signature, density)
                found = ratios(shape, members, arguments.rounds)
                lines.append(line(name, signature, density, found))
                print(lines[-1], flush=True)
    if arguments.docs:
        page = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(replace(page, "kernels", "\n".join(lines) + "\n"), encoding="utf-8")


if __name__ == "__main__":
    if os.environ.get("GLIBC_TUNABLES") != ALLOCATOR:  # it is read when a process starts
        settings = os.environ | {"GLIBC_TUNABLES": ALLOCATOR}
        os.execve(sys.executable, [sys.executable, *sys.argv], settings)
    main()
