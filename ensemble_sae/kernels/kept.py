"""Arrays that are kept from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Kept:
    """Arrays by name and shape, made when first asked for.

    Memory that is taken and given back at every step costs page faults at every step: on a CPU
    up to half of the step's time.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[Any, ...], Tensor] = {}

    def array(
        self, name: str, like: Tensor, *shape: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The array of this name, in the shape of `like` if none is given.

        Its contents are whatever was there before.
        """
        size = shape or tuple(like.shape)
        key = (name, size, dtype or like.dtype, like.device)
        if key not in self._arrays:
            self._arrays[key] = like.new_empty(size, dtype=dtype)
        return self._arrays[key]

    def clear(self) -> None:
        """Give all memory back."""
        self._arrays.clear()

    def list(self, name: str, like: Tensor, count: int, dtype: torch.dtype | None = None) -> Tensor:
        """`[count]`, from an array that grows by half where it is too short."""
        key = (name, dtype or like.dtype, like.device)
        if key not in self._arrays or len(self._arrays[key]) < count:
            self._arrays[key] = like.new_empty(count + count // 2, dtype=dtype)
        return self._arrays[key][:count]
