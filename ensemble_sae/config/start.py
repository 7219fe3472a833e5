"""What a member's directions start from: the words of a sweep file. `train.start` makes them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ensemble_sae.errors import UserError, nearest

OWN = "signature"  # the signature's own draw
RANDOM = ("orthogonal", "xavier", "kaiming")  # know the shape only
ROWS = ("rows", "svd")  # look at a sample of rows
RARE = ("mean", "centroid", "outlier")  # as `rows`, with a share of rare-feature vectors
KINDS = (OWN, *RANDOM, *ROWS, *RARE)

FORMS = 'a kind as text, or {kind = "centroid", rare = 0.05}'


@dataclass(frozen=True)
class Start:
    """A kind of start; see `ensemble_sae.train.start.directions` for what each one is.

    Attributes:
        kind: one of `KINDS`.
        rare: share of the directions that are rare-feature vectors, in (0, 1]; of no meaning,
            and left at its default, for kinds outside `RARE`.
    """

    kind: str = OWN
    rare: float = 0.05

    @classmethod
    def parse(cls, value: Any, where: str) -> Start:
        """A start from what a sweep file says: `"orthogonal"`, or a table of kind and rare.

        Args:
            where: file and key, for messages.

        Raises:
            UserError: of another type; an unknown kind or key; `rare` outside (0, 1], or given
                to a kind that has none.
        """
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or "kind" not in value:
            raise UserError(
                "A start is not understood.", where=where, found=repr(value)[:80], allowed=FORMS
            )
        known = [field.name for field in fields(cls)]
        for key in value:
            if key not in known:
                raise UserError(
                    f"A start has no {key!r}.",
                    where=f"{where}.{key}",
                    found=repr(value[key])[:80],
                    allowed=nearest(str(key), known),
                )
        kind = _kind(value["kind"], where)
        return cls(kind, _rare(kind, value["rare"], where)) if "rare" in value else cls(kind)

    @property
    def text(self) -> str:
        """The start in one word or two, for tables and names."""
        return f"{self.kind}:{self.rare:g}" if self.kind in RARE else self.kind

    @property
    def needs_rows(self) -> bool:
        """Whether a sample of rows is looked at."""
        return self.kind in ROWS or self.kind in RARE


def _kind(kind: Any, where: str) -> str:
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            "There is no such kind of start.",
            where=where,
            found=repr(kind)[:80],
            allowed=nearest(str(kind), KINDS),
        )
    return kind


def _rare(kind: str, rare: Any, where: str) -> float:
    if kind not in RARE:
        raise UserError(
            f"A start from {kind!r} has no rare-feature vectors.",
            where=f"{where}.rare",
            found=repr(rare)[:80],
            allowed=f"rare with {', '.join(RARE)}",
            next_step="leave rare out",
        )
    if type(rare) not in (int, float) or not 0 < rare <= 1:
        raise UserError(
            "A value is not allowed.",
            where=f"{where}.rare",
            found=repr(rare)[:80],
            allowed="a share of the directions, above 0 and at most 1",
        )
    return float(rare)
