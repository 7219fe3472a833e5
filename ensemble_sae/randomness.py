"""Counter-based randomness: every draw is a pure function of its name.

Nothing here has state. A stream is named by (seed, purpose, counters...), hashed to a key, and
a fresh generator is seeded with that key. So a draw does not depend on how members are grouped,
how many devices there are, or when a run was interrupted. Draws are made on the CPU always and
moved afterwards: CPU and CUDA generators give different numbers for the same seed.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def key(seed: int, purpose: str, *counters: int | str) -> int:
    """A 63-bit key for the stream (seed, purpose, counters...)."""
    name = "\x1f".join([str(seed), purpose, *map(str, counters)])
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, *counters: int | str) -> torch.Generator:
    """A fresh CPU generator for the stream (seed, purpose, counters...)."""
    return torch.Generator().manual_seed(key(seed, purpose, *counters))


def permutation(n: int, seed: int, purpose: str, *counters: int | str) -> Tensor:
    """A permutation of range(n), int64 `[n]`, on the CPU."""
    return torch.randperm(n, generator=generator(seed, purpose, *counters))
