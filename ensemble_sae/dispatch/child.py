"""Processes that live and die with this one, and leave the signals to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

NAME = "ensemble-sae"  # what the names of these processes begin with
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start(target: Callable[..., None], args: tuple[Any, ...], name: str) -> BaseProcess:
    """Spawn a process whose `target` begins with `settle()`.

    Ctrl-C reaches every process of a terminal. A child inherits blocked signals, so it is safe
    from them while it still imports; those that reach this process meanwhile wait.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=target, args=args, name=f"{NAME} {name}", daemon=True)
    resource_tracker.ensure_running()  # it would unblock the signals when it is started below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def settle() -> None:
    """In the child: ignore SIGINT and SIGTERM (the parent decides), and end when it ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def kill_all() -> None:
    """End every child at once, also one that is only just being started."""
    for child in multiprocessing.active_children():
        if child.name.startswith(NAME):
            child.kill()


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def environment(wanted: dict[str, str]) -> Iterator[None]:
    """A spawned process takes over the environment of the moment in which it starts."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
