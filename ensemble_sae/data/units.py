"""The units that rows are trained in: as stored, scaled, or centred and scaled."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class JoinedUnits:
    """Units of rows that are joined from several hook points: each part has its own.

    Args:
        parts: the units of each part, in the order of a row.
        widths: how many values of the row are each part's.
    """

    parts: tuple[Units, ...]
    widths: tuple[int, ...]

    def enter(self, rows: Tensor) -> Tensor:
        """Joined rows `[..., sum of widths]` in these units; the dtype as `Units.enter`."""
        split = zip(self.parts, rows.split(self.widths, -1), strict=True)
        return torch.cat([units.enter(part) for units, part in split], -1)

    def leave(self, rows: Tensor) -> Tensor:
        """Joined rows in these units `[..., sum of widths]`, in the units of the stores again."""
        split = zip(self.parts, rows.split(self.widths, -1), strict=True)
        return torch.cat([units.leave(part) for units, part in split], -1)


AnyUnits = Units | JoinedUnits


def join_units(parts: Sequence[Units], widths: Sequence[int]) -> AnyUnits:
    """The units of rows joined from parts of these widths; of a single part, its own."""
    return parts[0] if len(parts) == 1 else JoinedUnits(tuple(parts), tuple(widths))
