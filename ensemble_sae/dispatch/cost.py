"""What a step costs: counts of work, which a device's speeds turn into seconds.

A device has four speeds, measured in about a second (`speeds.py`): matrix products [FLOP/s],
passes over arrays in the cache and in memory [bytes/s], and the time of a step that has next to
nothing to compute [s]. A step of a stack of K members with n features on B rows of width d, of
which each row has L0 active features, takes

    slices * `slice` tiny steps
    + FLOP of its dense products * `product` / speed of products
    + K (B n `score` + B `row` + P `weight` + B L0 (`entry` + d `value`)) / speed of the cache
    + K P 24 bytes / speed of memory

P are a member's parameters; each is read and written once with its two moments, 24 bytes. The
quoted numbers are those of a kernel (`PRICES`). Work that is no plain pass (a sort, a row's few
instructions) is told in the bytes of a pass that takes as long. The sparse kernel makes one dense
product out of five.

Everything adds up: a worker's step is the sum of its stacks' steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ensemble_sae.signatures import resolve
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.sweep import Member
from ensemble_sae.train.slices import SPARSE_ROOM, slice_width

Way = Literal["generic", "dense", "sparse"]  # to the gradient
FLOAT = 4  # bytes
STATE = 3  # params, two moments
ENCODER = 1 / 5  # of the dense products: what the sparse kernel makes of them


class Speeds(NamedTuple):
    """Of a device, as one worker has it: FLOP/s, bytes/s (cache, memory), seconds of a step."""

    product: float
    cached: float
    memory: float
    step: float


class Price(NamedTuple):
    """What a kernel takes for each: tiny steps per slice, the share of the products' speed that is
    lost (1: nothing), and bytes in the cache for all others.
    """

    slice: float
    product: float
    score: float  # one of B n
    row: float  # one of B, for each member
    weight: float  # one of P
    entry: float  # one active feature in one row
    value: float  # one of the d of each entry


# Fitted to steps on two cores of an AMD EPYC: first of fifteen shapes (d 32..512, n 128..2048,
# B 128..1024), then, near those, of the 24 cells of `benchmarks/scaling.py` (its `--fit`).
PRICES: dict[Way, Price] = {
    "generic": Price(4.1, 1.25, 520, 0, 570, 0, 0),
    "dense": Price(0.98, 1.19, 185, 0, 230, 0, 0),
    "sparse": Price(0.83, 0.9, 266, 17_350, 110, 4_214, 17),
}


@dataclass(frozen=True)
class Stack:
    """Members of one shape that take the same way to the gradient on one device.

    Args:
        flop: of one member's step, if all its products are dense (see `member_flop`).
        parameters: of one member. width: d, the widest of what is read and what is reconstructed.
        density: share of the features that is active in a row; only the sparse kernel's cost
            depends on it.
        writes_gradients: whether something wants to see them: clipping, or not Adam.
    """

    members: int
    rows: int
    n_dict: int
    width: int
    flop: float
    parameters: int
    way: Way
    density: float = 1.0
    kind: str = "cpu"
    writes_gradients: bool = False

    @property
    def slices(self) -> list[int]:
        """Members of each slice, as `train.slices` cuts them."""
        if self.way == "sparse":
            most = max(1, SPARSE_ROOM[self.kind] // (self.rows * self.width * FLOAT))
        else:
            most = slice_width(self.rows, max(self.n_dict, self.width), FLOAT, self.kind)
        count = -(-self.members // most)
        cuts = [round(i * self.members / count) for i in range(count + 1)]
        return [stop - start for start, stop in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class Work:
    """Counts of what a step does: tiny steps, FLOP, bytes in the cache and in memory."""

    steps: float = 0.0
    flop: float = 0.0
    cached: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.steps + other.steps,
            self.flop + other.flop,
            self.cached + other.cached,
            self.moved + other.moved,
        )

    def seconds(self, speeds: Speeds) -> float:
        """How long that takes at some speeds."""
        return (
            self.steps * speeds.step
            + self.flop / speeds.product
            + self.cached / speeds.cached
            + self.moved / speeds.memory
        )


def work_of(stack: Stack, price: Price | None = None) -> Work:
    """What one step of a stack does; the formula is above.

    Args:
        price: default: that of the stack's kernel.
    """
    price = price or PRICES[stack.way]
    entries = stack.rows * stack.density * stack.n_dict
    member = (
        stack.rows * (stack.n_dict * price.score + price.row)
        + stack.parameters * price.weight
        + entries * (price.entry + stack.width * price.value)
    )
    dense = ENCODER if stack.way == "sparse" else 1.0
    return Work(
        steps=len(stack.slices) * price.slice,
        flop=stack.members * stack.flop * dense * price.product,
        cached=stack.members * member,
        moved=2.0 * STATE * FLOAT * stack.members * stack.parameters,
    )


def member_flop(member: Member, batch_size: int, n_dict: int | None = None) -> float:
    """FLOP of one dense step of one member.

    The encoder's product and its gradient are as wide as the input; the decoder's product, its
    gradient and the code's are as wide as what is reconstructed, which is the input itself if the
    member has no target: 10 B n d then. Signatures that compute more say so (`products`).

    Args:
        n_dict: features of the stack, for a member that is padded; default: its own.
    """
    d_in, d_out = member.d_activation, member.d_target or member.d_activation
    width = 2.0 * d_in + 3.0 * d_out
    if products := optional(resolve(member.signature), "products"):
        width = products(member.hyperparameters) * d_in
    return 2.0 * batch_size * (n_dict or member.n_dict) * width
