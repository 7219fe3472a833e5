"""What a worker keeps in memory.

Always: 12 bytes per parameter, itself and two moments in float32.

Working arrays are kept from step to step, for each width of slice that there is (slices of a
stack differ by one member at most). With u members in a slice, P parameters, n features, B rows of
width d, in floats:

    dense    u (P + 4 n d + 2 B (n + d))  update; unit rows, gradients, product; codes; residuals
    sparse   u (B d + 3 n) of a slice, and of all its entries 1.5 * (row, code, slope);
             B w (3 n + 2) + 32 w n (a GPU: 256) of the w members whose scores are made at once

The mapped way allocates what it needs anew: as the dense one, with twice the codes. Where the
sparse kernel has to write gradients down (clipping, other optimisers than Adam), u 2 P more.

For a moment, of the largest stack: 4 bytes per parameter while members are stacked; 8 while the
moments of all slices are joined for a checkpoint; 16 while members change their kernel, when
its working arrays are given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ensemble_sae.dispatch.cost import FLOAT, STATE, Stack
from ensemble_sae.kernels.sparse import BLOCKS, ROOM

GROWTH = 1.5  # of lists that turned out to be too short
LONG = 2  # floats that a 64-bit number takes
STACKING, JOINED, CHANGING = 1, 2, 4  # times the bytes of a stack's parameters, for a moment
OTHER = 7 * 2**18  # bytes: tallies, buffers, what a library takes at its first product of a size
BASE = {"cpu": 420 * 2**20, "cuda": 0}  # Python, PyTorch and numba in a worker, before its members


def needed(ensembles: Iterable[Sequence[Stack]]) -> int:
    """Bytes of some ensembles in one worker, beside its base and its chunks.

    Args:
        ensembles: of each the stacks that it may be; members may be in all of them by and by.
    """
    ensembles = list(ensembles)
    sizes = [weights(ways[0]) for ways in ensembles]
    kept = [sum(map(working, ways)) for ways in ensembles]
    peaks = [0]
    for ways, size, own in zip(ensembles, sizes, kept, strict=True):
        peaks += [STACKING * size, sum(kept) + JOINED * size]
        if len(ways) > 1:
            peaks.append(sum(kept) - own + CHANGING * size)
    return OTHER + STATE * sum(sizes) + max(peaks)


def weights(stack: Stack) -> int:
    """Bytes of all members' parameters."""
    return FLOAT * stack.members * stack.parameters


def working(stack: Stack) -> int:
    """Bytes of the arrays that are kept from step to step."""
    each = _sparse if stack.way == "sparse" else _dense
    return round(FLOAT * sum(each(stack, width) for width in set(stack.slices)) + _scores(stack))


def _dense(stack: Stack, width: int) -> float:
    arrays = 4 * stack.n_dict * stack.width
    codes = (2 if stack.way == "dense" else 4) * stack.rows * stack.n_dict
    return width * (stack.parameters + arrays + codes + 2 * stack.rows * stack.width)


def _sparse(stack: Stack, width: int) -> float:
    entries = stack.rows * stack.density * stack.n_dict
    gradients = 2 * stack.parameters if stack.writes_gradients else 0
    own = stack.rows * stack.width + (1 + LONG) * stack.n_dict + gradients
    return width * (own + STATE * GROWTH * entries)


def _scores(stack: Stack) -> float:
    """Bytes of the scores of a sparse slice, their columns and slopes, and the room to sort them,
    for each number of members whose scores are made at once.
    """
    if stack.way != "sparse":
        return 0
    most = max(1, ROOM[stack.kind] // (FLOAT * stack.rows * stack.n_dict))
    widths = {min(most, width) for width in stack.slices}
    widths |= {width % most for width in stack.slices if width > most} - {0}
    rows = stack.rows * (3 * stack.n_dict + LONG)
    return FLOAT * sum(
        width * (rows + LONG * BLOCKS[stack.kind] * stack.n_dict) for width in widths
    )
