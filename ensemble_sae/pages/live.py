"""Progress in a notebook: an output that is rewritten in place, by means of IPython alone.

rich shows its own in notebooks only where ipywidgets is installed.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EVERY_S = 0.2  # between two pictures: each is a message to the browser

Show = Callable[[int, int | None, str], None]


def in_notebook() -> bool:
    """Whether this is a kernel's process, which shows rich output."""
    ipython = sys.modules.get("IPython")  # not imported: then this is none
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class Panel:
    """An output of the running cell whose HTML is replaced again and again."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = -EVERY_S

    def update(self, content: Callable[[], str], at_once: bool = False) -> None:
        """Show other HTML, made only if the last was not just now, or if it must be shown."""
        now = time.monotonic()
        if not at_once and now - self._shown < EVERY_S:
            return
        self._shown = now
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(content()), display_id=True)
        else:
            self._handle.update(HTML(content()))


@contextmanager
def progress(first: str = "") -> Iterator[Show]:
    """A function `show(done, total, text)`, to be called often; total None is not known.

    A bar in a notebook, which stays as it ended; nothing elsewhere.

    Args:
        first: what is shown before the first call; nothing without it.
    """
    if not in_notebook():
        yield lambda done, total, text: None
        return
    panel = Panel()
    if first:
        panel.update(lambda: bar(0, None, first))

    def show(done: int, total: int | None, text: str) -> None:
        panel.update(lambda: bar(done, total, text), at_once=done == total)

    yield show


def bar(done: float, total: float | None, text: str) -> str:
    """HTML of a bar with a text beside it; a total of None is not known."""
    place = f' value="{done}" max="{total}"' if total else ""
    return f'<progress{place} style="width: 16em"></progress> <span>{html.escape(text)}</span>'
