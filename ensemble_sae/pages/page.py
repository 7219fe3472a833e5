"""A page of text, tables and figures: one HTML file, the figures as PNG beside it.

It opens from the disk, without a network, light and dark as the reader's system is.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_sae.errors import UserError
from ensemble_sae.files import write_atomically, write_json
from ensemble_sae.pages.figures import DPI

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --back: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b3; --line: #3d444d; --back: #0d1117 }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--back);
       max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem }
figure { margin: 1.5rem 0 } figure img { max-width: 100%; height: auto; background: #fff;
         border-radius: 6px } figcaption, .note { color: var(--soft); max-width: 60rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left } code { font-size: .92em }
""".strip()


class Page:
    """Collects what goes onto a page, then writes it.

    page = Page("A study", "What was asked.")
    page.heading("Heat maps")
    page.figure("heat", figure, "How to read it.")
    page.write(Path("out"))
    """

    def __init__(self, title: str, about: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(about)}</p>"]
        self._figures: dict[str, bytes] = {}
        self._numbers: dict[str, Any] = {}

    def heading(self, text: str) -> None:
        """A section begins."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def points(self, lines: list[str]) -> None:
        """A list."""
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        self._parts.append(f"<ul>{items}</ul>")

    def table(self, table: pd.DataFrame, caption: str, formats: Mapping[str, str]) -> None:
        """A table, its index as the first column.

        Args:
            formats: of columns, as `"{:.3f}"`; others are written as they are.
        """
        head = [str(table.index.name or ""), *map(str, table.columns)]
        lines = [_row("th", head)]
        for name, row in zip(table.index, table.itertuples(index=False), strict=True):
            cells = [_cell(v, formats.get(c)) for c, v in zip(table.columns, row, strict=True)]
            lines.append(_row("td", [str(name), *cells]))
        self._parts.append(f'<div class="wide"><table>{"".join(lines)}</table></div>')
        self._parts.append(f'<p class="note">{html.escape(caption)}</p>')

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """A figure, saved as NAME.png."""
        room = io.BytesIO()
        figure.savefig(room, format="png", dpi=DPI)
        self._figures[f"{name}.png"] = room.getvalue()
        said = html.escape(caption)
        self._parts.append(
            f'<figure><a href="{name}.png"><img src="{name}.png" alt="{said}" loading="lazy"></a>'
            f"<figcaption>{said}</figcaption></figure>"
        )

    def numbers(self, name: str, value: Any) -> None:
        """Numbers for other programs: under `name` in numbers.json; null where there is none."""
        self._numbers[name] = plain(value)

    def write(self, folder: Path) -> Path:
        """Write figures and numbers, then `index.html`; returns its path.

        Raises:
            UserError: the folder cannot be written.
        """
        page = folder / "index.html"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self._figures.items():
                _write(folder / name, content)
            write_json(folder / "numbers.json", self._numbers)
            _write(page, self._html().encode())
        except OSError as error:
            raise UserError(
                "The page could not be written.", where=str(folder), found=str(error)
            ) from None
        return page

    def _html(self) -> str:
        body = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_CSS}</style></head>\n"
            f"<body>\n{body}\n</body></html>\n"
        )


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _row(kind: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"


def plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinity, no type of NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):  # a NumPy number or array
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any, form: str | None) -> str:
    if value is None or value != value:
        return "–"
    return form.format(value) if form else str(value)
