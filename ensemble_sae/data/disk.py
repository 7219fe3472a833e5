"""Room on the disk, asked for before a long job starts; and one writer per folder."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from ensemble_sae.errors import UserError


def human_bytes(count: float) -> str:
    """A number of bytes for people, in decimal units: `1.5 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def check_disk(folder: Path, needed_bytes: int, next_step: str | None = None) -> None:
    """Check that the disk below `folder` (which need not exist yet) has room.

    Raises:
        UserError: says how much is needed and how much is free.
    """
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise UserError(
            "There is not enough room on the disk.",
            where=str(folder),
            found=f"{human_bytes(free)} free",
            allowed=f"{human_bytes(needed_bytes)} are needed",
            next_step=next_step or "free some space, or choose another folder",
        )


def lock(folder: Path) -> int:
    """Lock `folder` against other writers until the returned descriptor is closed.

    The lock goes with the process, however it ends, and leaves no file behind.

    Raises:
        UserError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            "Another process is writing this store.",
            where=str(folder),
            next_step="wait for it, or use another name",
        ) from None
    return descriptor
