"""Writing files so that nothing half-written is ever read, and reading them without surprises.

Every file appears under its own name only when it is complete and flushed: it is written to a
temporary name in the same folder, synced, then renamed. Nothing here knows what is in a file
beyond safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ensemble_sae.errors import CorruptFile, UserError

TEMPORARY = ".tmp-"  # the prefix of names that a reader must ignore


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)`, flush what it wrote, and rename it to `path`."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, so that every JSON reader can read it."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read JSON, or say which file is missing or damaged and where."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("A file is missing.", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile("A file is not valid JSON.", where=str(path), found=str(error)) from None


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda p: save_file(ready, p, metadata=dict(metadata or {})))


def open_tensors(path: Path, device: str = "cpu") -> Any:
    """A memory-mapped safetensors file (`safe_open`), or an error that names the damage."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device=device)
    except FileNotFoundError:
        raise UserError("A file is missing.", where=str(path)) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFile(
            "A tensor file is truncated or damaged.",
            where=str(path),
            found=f"{path.stat().st_size:,} bytes; {error}",
            allowed="a complete safetensors file",
        ) from None


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal (the same as `sha256sum` prints)."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):  # read ahead while what is there is summed
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
