"""A sweep file of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import WIDTHS, Read

from ensemble_sae.sweep import expand, load_sweep


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a sweep's text to a file, load and expand it."""

    def function(text: str, *settings: str, widths: dict[str, int] = WIDTHS):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        sweep, where = load_sweep(path, settings)
        return sweep, expand(sweep, widths, where)

    return function
