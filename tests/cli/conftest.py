"""The commands' tests share a small run of the embedded language model, and a folder of rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from small_lm_run import folder, trained
from typer.testing import CliRunner

from ensemble_sae import cli
from ensemble_sae.terminal import SCRIPT

__all__ = ["folder", "trained"]


class Called(NamedTuple):
    """How a call ended, and what it wrote to which stream."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Stdout, which must be one JSON object as the standard has it."""

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is no JSON")

        found = json.loads(self.stdout, parse_constant=refuse)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """`ensemble-sae WORDS` in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: object) -> Called:
        given = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", [f"/somewhere/{SCRIPT}", *given])
        done = CliRunner().invoke(cli.app, given, prog_name=SCRIPT)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Called(done.exit_code, done.stdout, done.stderr)

    return call
