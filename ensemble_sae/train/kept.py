"""Arrays that are kept from step to step."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Kept:
    """Arrays by name and shape, made when first asked for.

    Memory that is taken and given back at every step costs page faults at every step: on a CPU
    up to half of the step's time.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[Any, ...], Tensor] = {}

    def array(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """The array of this name, in the shape of `like` if none is given.

        Its contents are whatever was there before.
        """
        size = shape or tuple(like.shape)
        key = (name, size, like.dtype, like.device)
        if key not in self._arrays:
            self._arrays[key] = like.new_empty(size)
        return self._arrays[key]
