"""Which hook points a member learns from: one, several side by side, or one from another.

A              rows of one hook point, reconstructed
A + B          rows of several, side by side, reconstructed: one dictionary for all of them
A -> B         the row of B predicted from that of A
A + B -> C     the same from several
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ensemble_sae.errors import UserError

AND, ARROW = "+", "->"  # neither occurs in a hook point's name
FORMS = "A, A + B, A -> B, or A + B -> C, where A, B and C are hook points"

T = TypeVar("T")


@dataclass(frozen=True)
class Hook:
    """Hook points by name: what is read and what is predicted.

    Args:
        inputs: at least one, each once.
        targets: none if the inputs themselves are reconstructed.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, where: str | None = None) -> Hook:
        """Read `A + B -> C`; the spaces are optional.

        Args:
            where: the key that the text comes from, for messages.

        Raises:
            UserError: an empty name, several arrows, or a hook point that is twice on one side.
        """
        sides = text.split(ARROW)
        if len(sides) > 2:
            raise _refused("A hook has one arrow at most.", text, where)
        parts = [tuple(name.strip() for name in side.split(AND)) for side in sides]
        for names in parts:
            if "" in names:
                raise _refused("A hook point's name is missing.", text, where)
            if len(set(names)) < len(names):
                raise _refused("A hook names the same point twice on one side.", text, where)
        return cls(*parts)

    @property
    def points(self) -> tuple[str, ...]:
        """All hook points in the order in which their rows are joined: inputs, then targets."""
        return self.inputs + self.targets

    @property
    def measured(self) -> tuple[str, ...]:
        """The points whose rows are reconstructed: the targets, or the inputs if there are none."""
        return self.targets or self.inputs

    @property
    def name(self) -> str:
        """The expression, with single spaces: what `parse` reads again."""
        sides = [self.inputs, self.targets] if self.targets else [self.inputs]
        return f" {ARROW} ".join(f" {AND} ".join(names) for names in sides)

    def split(self, values: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        """One value per point, in the order of `points`, as those of the inputs and the targets."""
        count = len(self.inputs)
        return tuple(values[:count]), tuple(values[count:])


def is_plain(name: str) -> bool:
    """Whether a hook point may be called so, without being mistaken for an expression."""
    return bool(name) and name == name.strip() and AND not in name and ARROW not in name


def points_of(hooks: Sequence[str] | set[str]) -> set[str]:
    """Every hook point that one of these hooks is made of."""
    return {point for hook in hooks for point in Hook.parse(hook).points}


def _refused(what: str, text: str, where: str | None) -> UserError:
    return UserError(what, where=where, found=repr(text), allowed=FORMS)
