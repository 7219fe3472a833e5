"""The units that a member was trained in, as a run's files have them."""

from __future__ import annotations

import math
from typing import Any

from ensemble_sae.data.hooks import Hook
from ensemble_sae.data.units import AnyUnits, Units, join_units
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.run.layout import Layout
from ensemble_sae.sweep import Member


def member_units(config: Member, known: Any, layout: Layout) -> tuple[AnyUnits, AnyUnits]:
    """The units of what a member reads, and of what it gives: the same if it has no target.

    Args:
        known: `units` of `sweep.json`: scale and shift by hook point.
        layout: the run's files, for messages.

    Raises:
        CorruptFile: units or widths that are missing or make no sense.
    """
    try:
        hook = Hook.parse(config.hook)
        widths, targets = hook.split(config.widths or (config.d_activation,))
        if len(widths + targets) != len(hook.points) or sum(widths) != config.d_activation:
            raise ValueError(f"widths {config.widths}, d_activation {config.d_activation}")
    except (UserError, ValueError) as error:
        raise CorruptFile(
            "The hook of a member does not fit its widths.",
            where=f"{layout.members}: member {config.id}",
            found=f"{config.hook!r}: {str(error).splitlines()[0]}",
            allowed="one width per hook point; d_activation is the sum of the inputs'",
        ) from None
    every = zip(hook.points, widths + targets, strict=True)
    reads, gives = hook.split([_point_units(point, d, known, layout) for point, d in every])
    inside = join_units(reads, widths)
    return inside, join_units(gives, targets) if gives else inside


def _point_units(point: str, width: int, known: Any, layout: Layout) -> Units:
    try:
        units = Units(float(known[point]["scale"]), tuple(map(float, known[point]["shift"])))
        if not (0 < units.scale < math.inf and len(units.shift) in (0, width)):
            raise ValueError(f"scale {units.scale:g}, {len(units.shift)} values in shift")
        return units
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            "The units that a run was trained in are damaged.",
            where=f"{layout.sweep}: units.{point}",
            found=f"{type(error).__name__}: {error}",
            allowed=f"scale, a number > 0, and shift, a list of {width} or no numbers",
        ) from None
