"""The units that rows are trained in: as stored, scaled, or centred and scaled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ensemble_sae.data.store import ChunkStore

Normalise = Literal["none", "scale", "standard"]


@dataclass(frozen=True)
class Units:
    """x -> (x - shift) / scale, and back.

    Args:
        scale: one number for all dimensions, so that directions and angles stay what they are.
        shift: `d` values, or none for no shift.
    """

    scale: float = 1.0
    shift: tuple[float, ...] = ()

    @classmethod
    def of(cls, store: ChunkStore, normalise: Normalise) -> Units:
        """none: as stored; scale: divided by the store's scale; standard: its mean taken off too.

        After `scale` the rows' centred coordinates have a mean square of 1, so that an l1 means
        the same at every hook.
        """
        if normalise == "none" or store.meta.scale == 0:
            return cls()
        shift = tuple(store.meta.mean) if normalise == "standard" else ()
        return cls(store.meta.scale, shift)

    def enter(self, rows: Tensor) -> Tensor:
        """Rows of any dtype `[..., d]` in these units, float32 (float64 stays float64)."""
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if self.shift:
            rows = rows - self._shift(rows)
        return rows if self.scale == 1.0 else rows / self.scale

    def leave(self, rows: Tensor) -> Tensor:
        """Rows in these units `[..., d]`, in the units of the store again."""
        rows = rows if self.scale == 1.0 else rows * self.scale
        return rows + self._shift(rows) if self.shift else rows

    def _shift(self, like: Tensor) -> Tensor:
        """The shift as a tensor like another; made once, since every batch asks for it."""
        key = (like.dtype, like.device)
        if key not in self._made:
            self._made[key] = torch.tensor(self.shift, dtype=like.dtype, device=like.device)
        return self._made[key]

    @cached_property
    def _made(self) -> dict[tuple[torch.dtype, torch.device], Tensor]:
        return {}
