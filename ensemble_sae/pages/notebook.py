"""What objects look like in a notebook: small cards of HTML.

Nothing has a background or an ink of its own but in transparent shades, so that light and dark
notebooks keep theirs; where styles are stripped (as on GitHub) tables and bold words remain. All
text that is given is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SHADE = "230, 159, 0"  # orange: under dark ink and under light ink
DEEPEST = 0.55  # opacity of the strongest token
LINE = "1px solid rgba(128, 128, 128, 0.35)"
_CELL = "padding: 2px 10px 2px 0; border: none; text-align: left; vertical-align: baseline"
_NUMBER = _CELL.replace("left", "right")
_SOFT = "opacity: 0.65"


def card(title: str, about: str, *parts: str) -> str:
    """A card: a bold title, a line about it, then parts that are HTML already."""
    head = f"<b>{_safe(title)}</b>"
    said = f' <span style="{_SOFT}">{_safe(about)}</span>' if about else ""
    body = "".join(f'<div style="margin-top: 8px">{part}</div>' for part in parts if part)
    style = f"border: {LINE}; border-radius: 6px; padding: 10px 14px; max-width: 60em"
    return f'<div style="{style}; line-height: 1.45">{head}{said}{body}</div>'


def facts(pairs: Mapping[str, Any]) -> str:
    """A line for each name and what is said of it; those of which nothing is said are left out."""
    rows = [
        f'<tr style="background: none"><td style="{_CELL}; {_SOFT}">{_safe(name)}</td>'
        f'<td style="{_CELL}">{_safe(said)}</td></tr>'
        for name, said in pairs.items()
        if said not in (None, "")
    ]
    return _table("".join(rows)) if rows else ""


def table(rows: pd.DataFrame, formats: Mapping[str, str] | None = None, caption: str = "") -> str:
    """A small table, its index first.

    Args:
        formats: of columns, as `"{:.3f}"`; lists of words are joined, others written as they are.
        caption: a line above it.
    """
    formats = formats or {}
    heads = [str(rows.index.name or ""), *map(str, rows.columns)]
    numeric = [dtype.kind in "iuf" for dtype in (rows.index.dtype, *rows.dtypes)]
    styles = [_NUMBER if number else _CELL for number in numeric]
    head = "".join(
        f'<th style="{style}; font-weight: normal; {_SOFT}">{_safe(name)}</th>'
        for name, style in zip(heads, styles, strict=True)
    )
    lines = [f'<tr style="background: none; border-bottom: {LINE}">{head}</tr>']
    for index, values in zip(rows.index, rows.itertuples(index=False), strict=True):
        cells = [str(index)]
        cells += [_cell(v, formats.get(n)) for n, v in zip(heads[1:], values, strict=True)]
        inside = "".join(
            f'<td style="{style}">{_safe(cell)}</td>'
            for cell, style in zip(cells, styles, strict=True)
        )
        lines.append(f'<tr style="background: none">{inside}</tr>')
    return _note(caption) + _table("".join(lines))


def words(title: str, given: Iterable[str]) -> str:
    """Words on a line, each in a frame, so that their spaces can be seen."""
    style = f"border: {LINE}; border-radius: 3px; padding: 0 3px; white-space: pre"
    framed = " ".join(f'<code style="{style}; background: none">{_safe(w)}</code>' for w in given)
    return f'<span style="{_SOFT}">{_safe(title)}</span> {framed}' if framed else ""


def shaded_tokens(tokens: Sequence[str], activations: Sequence[float], largest: float) -> str:
    """Text whose tokens are the darker the stronger a feature is on them; bold from half on.

    Args:
        tokens: as they are to be shown. largest: the activation of the darkest shade.
    """
    shown = []
    for token, strength in zip(tokens, activations, strict=True):
        text = _safe(token)
        share = min(1.0, strength / largest) if largest > 0 else 0.0
        if share > 0:
            inside = f"<b>{text}</b>" if share >= 0.5 else text
            shade = f"background: rgba({SHADE}, {0.08 + (DEEPEST - 0.08) * share:.2f})"
            text = f'<span style="{shade}" title="{strength:.3g}">{inside}</span>'
        shown.append(text)
    return "".join(shown)


def contexts(title: str, lines: Iterable[tuple[float, str]]) -> str:
    """Texts with how strong a feature is in each.

    Args:
        lines: the strength, and HTML of `shaded_tokens`.
    """
    rows = "".join(
        f'<tr style="background: none"><td style="{_NUMBER}; {_SOFT}">{strength:.3g}</td>'
        f'<td style="{_CELL}; white-space: pre-wrap; font-family: monospace">{text}</td></tr>'
        for strength, text in lines
    )
    return _note(title) + _table(rows) if rows else ""


def python(*lines: str) -> str:
    """Lines to go on with."""
    inside = "<br>".join(f"<code>{_safe(line)}</code>" for line in lines)
    return f'<div style="border-top: {LINE}; padding-top: 6px">{inside}</div>'


def sampled(rows: Any, most: int) -> Any:
    """At most so many rows of a table or items of a list, evenly spaced, both ends among them."""
    if len(rows) <= most:
        return rows
    places = [round(place * (len(rows) - 1) / (most - 1)) for place in range(most)]
    return [rows[place] for place in places] if isinstance(rows, list) else rows.iloc[places]


def _table(rows: str) -> str:
    style = "border-collapse: collapse; border: none; margin: 0; font-variant-numeric: tabular-nums"
    return f'<div style="overflow-x: auto"><table style="{style}">{rows}</table></div>'


def _note(text: str) -> str:
    return f'<div style="{_SOFT}">{_safe(text)}</div>' if text else ""


def _cell(value: Any, form: str | None) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "__len__"):
        return " ".join(map(str, value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return form.format(value) if form else str(value)


def _safe(text: Any) -> str:
    return html.escape(str(text))
