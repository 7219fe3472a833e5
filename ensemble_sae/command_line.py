"""What command lines share: options that several commands have, and help that ends in examples.

The examples are those of the docstring of a command's module. They are shown as the command was
called: `python -m ensemble_sae.evaluate ...` or `ensemble-sae evaluate ...`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ensemble_sae import completion
from ensemble_sae.terminal import SCRIPT, print_json

Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on stdout; what is for people on stderr."),
]
RunFolder = Annotated[
    Path,
    typer.Argument(help="The run's folder.", show_default=False, autocompletion=completion.runs),
]

# Whether typer brings its own click or imports it: what is raised for a line that is not understood
UsageError: Any = typer.BadParameter.__mro__[1]
MODULE = re.compile(r"python -m ensemble_sae\.\w+")


def run(main: Callable[..., None]) -> None:
    """Run a module's `main` as a command of its own: `python -m ensemble_sae.NAME`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    app.command(cls=Command)(main)
    app()


class Command(TyperCommand):
    """A command whose help ends in examples, and whose mistakes may be told as JSON."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, then notes and examples."""
        super().format_help(ctx, formatter)
        formatter.write(_more_help(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse options; with `--json` among them a mistake is one JSON object."""
        return _understood(super().parse_args, ctx, args)


class Group(TyperGroup):
    """Commands under one name, likewise."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, then notes and examples."""
        super().format_help(ctx, formatter)
        formatter.write(_more_help(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse options; with `--json` among them a mistake is one JSON object."""
        return _understood(super().parse_args, ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command; with `--json` in the line a mistake is one JSON object."""
        return _understood(super().resolve_command, ctx, args)


def _understood(parse: Callable[[Any, list[str]], Any], ctx: Any, args: list[str]) -> Any:
    given = list(args)
    try:
        return parse(ctx, args)
    except UsageError as error:
        if "--json" not in given:
            raise
        what, path = error.format_message(), ctx.command_path
        typer.echo(f"error: {what}", err=True)
        about = {"what": what, "where": path, "found": shlex.join(given), "allowed": None}
        print_json({"error": {**about, "next_step": f"{path} --help"}})
        raise typer.Exit(error.exit_code) from None


def _more_help(command: Any, ctx: Any) -> str:
    doc = sys.modules[command.callback.__module__].__doc__ or ""
    notes, examples = split(doc)
    width = shutil.get_terminal_size().columns
    parts = [textwrap.fill(note, min(width, 100) - 2) for note in notes]
    lines = [fitted(MODULE.sub(ctx.command_path, line), width - 4) for line in examples]
    if lines:
        parts.append("Examples:\n" + textwrap.indent("\n".join(lines), "  "))
    return "\n" + textwrap.indent("\n\n".join(parts), " ") + "\n"


def split(doc: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a docstring after the first, in which examples are lines of their own.

    Returns:
        Paragraphs of prose, each on one line; and examples, each on one line.
    """
    notes, examples = [], []
    for paragraph in doc.replace("\\\n", " ").strip().split("\n\n")[1:]:
        lines = [" ".join(line.split()) for line in paragraph.splitlines()]
        if lines[0].startswith((SCRIPT, "python -m ")):
            examples += lines
        else:
            notes.append(" ".join(lines))
    return notes, examples


def fitted(line: str, width: int) -> str:
    """A command on lines of at most `width` characters, as far as its words allow: a shell reads
    them as one. An option stays with its value.
    """
    pieces: list[str] = []
    for word in line.split(" "):
        if pieces and pieces[-1].startswith("-") and " " not in pieces[-1] and word[:1] != "-":
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) + 3 > width:  # a space, and " \" if another line follows
            lines.append(f"    {piece}")
        else:
            lines[-1] += f" {piece}"
    return " \\\n".join(lines)
