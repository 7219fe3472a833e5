"""SIGINT and SIGTERM while a sweep runs."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any, Self

from ensemble_sae.dispatch import child
from ensemble_sae.dispatch.dispatcher import Dispatcher
from ensemble_sae.errors import UserError


class Stopped(UserError):
    """A signal came before there was anything to save."""

    def __init__(self, number: int) -> None:
        super().__init__(
            "Stopped before the training began.",
            next_step="the same command begins again; what is harvested is kept",
        )
        self.exit_code = 128 + number


class Signals:
    """The first signal pauses and saves the training; a second one ends everything at once.

    Before there is a `dispatcher` to pause, the first one ends the sweep as `Stopped`. When the
    training is `finished`, it interrupts what is still done for the eye.
    """

    def __init__(self) -> None:
        self.dispatcher: Dispatcher | None = None
        self.finished = False
        self._received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread (a notebook's, say): signals stay who they were
            pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt and self._received and self.dispatcher is None:
            raise Stopped(self._received) from None

    def _handle(self, number: int, frame: Any) -> None:
        if self._received:
            child.kill_all()
        if self._received or self.finished or self.dispatcher is None:
            self._received = number
            raise KeyboardInterrupt
        self._received = number
        self.dispatcher.interrupt(number)
