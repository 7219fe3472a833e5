"""The errors that people read: what is wrong, where, what was found, what is allowed, what to do.

Everything that a user can cause (a typo in a sweep, a missing file, a full disk) is raised as a
`UserError` or a subclass. The commands print it without a traceback and exit with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the reader of the message can mend.

    Args:
        what: one sentence: the problem.
        where: the file, key, member or tensor it was met in.
        found: the offending value, as text.
        allowed: what would have been accepted.
        next_step: what to do now, ideally a command.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        found: str | None = None,
        allowed: str | None = None,
        next_step: str | None = None,
    ) -> None:
        self.what, self.where, self.found = what, where, found
        self.allowed, self.next_step = allowed, next_step
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [
            ("where", self.where),
            ("found", self.found),
            ("allowed", self.allowed),
            ("next", self.next_step),
        ]
        return "\n".join([self.what, *(f"  {k + ':':<9}{v}" for k, v in parts if v is not None)])

    def __reduce__(self) -> tuple[object, ...]:  # crosses from a worker process to its dispatcher
        keywords = {
            "where": self.where,
            "found": self.found,
            "allowed": self.allowed,
            "next_step": self.next_step,
        }
        return (_rebuild, (type(self), self.what, keywords))


def _rebuild(cls: type[UserError], what: str, keywords: dict[str, str | None]) -> UserError:
    return cls(what, **keywords)


class CorruptFile(UserError):
    """A file on disk that is truncated, altered, or of another schema than this version reads."""


class WorkerFailed(UserError):
    """A worker died more often than it is restarted; what the others did is kept."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """`known` as text, with the near miss first if there is one: for the `allowed` line."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    listing = ", ".join(known) if known else "(nothing)"
    return f"{listing}  (did you mean {close[0]!r}?)" if close else listing
