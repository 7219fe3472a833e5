"""What is asked of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROWS = 8_192  # tokens of text
MINUTES = 5.0  # that an evaluation of all members may take, unless they are asked for


@dataclass(frozen=True)
class Request:
    """See `python -m ensemble_sae.evaluate --help`.

    Args:
        members: ids; None for all, or for those on the frontier if all would take too long.
        rows: tokens of held-out text.
        keep: subsets of features that are evaluated beside all of them: see `subsets.Subset`.
        model, dataset, context, device: in place of those that the rows came from.
        minutes: how long is too long.
        overwrite: replace the results that are there.
    """

    members: Sequence[int] | None = None
    rows: int = ROWS
    keep: tuple[str, ...] = ()
    model: str | None = None
    dataset: str | None = None
    context: int | None = None
    device: str | None = None
    minutes: float = MINUTES
    overwrite: bool = False
