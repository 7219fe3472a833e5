"""What is said of a member in the files of other packages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class About:
    """Where a member comes from and what is known of it.

    Attributes:
        hook: the hook point. model, dataset, context, bos: of the harvest, where they are known.
        member: its configuration. results: held-out numbers. text: a line that names it.
    """

    hook: str = ""
    model: str | None = None
    dataset: str | None = None
    context: int | None = None
    bos: bool | None = None
    member: dict[str, Any] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    text: str = ""
