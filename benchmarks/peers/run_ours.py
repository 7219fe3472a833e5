"""Ours: `FunctionalEnsemble.step`, kernels chosen as in a sweep (`auto`), metrics included.

Members have the job's share of their features active, and learning rate 0, so that the share stays
what it is. Adam's arithmetic is done all the same: moments, their roots, the update times 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from turns import Turns

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from contestants import Ensemble, Shape


def main() -> None:
    """Build the members, let them settle, step when asked."""
    turns = Turns("ensemble-sae")
    job = turns.job
    d, dicts = turns.rows.shape[1], (job["n_dict"],)
    shape = Shape("peers", d, dicts, job["batch"], job["signature"], density=job["density"])
    ours = Ensemble(shape, job["members"], torch.device("cpu"), "auto", lr=0.0)
    ours.settle(turns.batches[0])
    for batch in turns.batches:  # loops are compiled, memory is taken
        ours.step(batch)
    turns.facts["active"] = ours.active()
    for batch in turns:
        ours.step(batch)


if __name__ == "__main__":
    main()
