"""The embedded corpus: the Python standard library's own source, already on every machine.

It needs no download, it is plain text in one language that a tiny model can learn, and its
documents have names, so that a document can be held out by its name on every machine alike.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ensemble_sae.errors import UserError

# Not part of the library proper, or tables rather than text.
_NEVER = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"})
# Distributions differ in whether they ship these: they are left out unless asked for.
_TESTS = frozenset({"test", "tests", "idle_test"})
# Written when the interpreter was built: they hold that machine's paths and compiler flags.
_BUILD_PREFIXES = ("config-", "_sysconfigdata")

HELD_OUT_FRACTION = 0.03


def documents(tests: bool = False, root: str | Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield the corpus as `(name, text)`, sorted by name.

    `name` is the path below the standard library with forward slashes (`json/decoder.py`), `text`
    the file's content. Empty files and files that are not UTF-8 are skipped.

    Args:
        tests: also the library's own tests, where the interpreter ships them.
        root: the folder to read; the running interpreter's standard library when None.

    Raises:
        UserError: the folder holds no Python source (a frozen or zipped interpreter).
    """
    folder = Path(root if root is not None else sysconfig.get_paths()["stdlib"])
    found = False
    for name in sorted(_names(folder, tests)):
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text:
            found = True
            yield name, text
    if not found:
        raise UserError(
            "the embedded corpus is empty: no Python source was found",
            where=str(folder),
            allowed="the standard library of an interpreter that keeps its .py files on disk",
            next_step="use another interpreter, or name a data set in the recipe",
        )


def _names(folder: Path, tests: bool) -> Iterator[str]:
    """Yield the relative posix paths of the corpus below `folder`, unsorted."""
    skipped = _NEVER if tests else _NEVER | _TESTS
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if skipped.isdisjoint(parts[:-1]) and not any(p.startswith(_BUILD_PREFIXES) for p in parts):
            yield "/".join(parts)


def is_test(name: str) -> bool:
    """Whether the document belongs to the library's tests (only there with `tests=True`)."""
    return not _TESTS.isdisjoint(name.split("/")[:-1])


def is_held_out(name: str) -> bool:
    """Whether the embedded model never trained on the document.

    About 3% of the documents outside the tests, chosen by a hash of the name: the same choice on
    every machine and for every order of reading.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return not is_test(name) and int.from_bytes(digest[:8], "big") < HELD_OUT_FRACTION * 2**64
