"""An executed notebook as a page of the site: its text, its code, and what the code showed."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

ACTIVE = re.compile(r"<(script|iframe|link|img)\b|\son\w+=", re.IGNORECASE)


def page_of(notebook: str, name: str) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook (nbformat 4), and its pictures by file name.

    Outputs are shown as a picture if they have one, else as an HTML table, else as text. HTML that
    runs or loads something is never taken over.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"````python\n{source}\n````")
            for output in cell["outputs"]:
                shown = _shown(output, f"{name}-{len(pictures)}", pictures)
                parts += [shown] if shown else []
    return "\n\n".join(parts) + "\n", pictures


def _shown(output: dict[str, Any], picture: str, pictures: dict[str, bytes]) -> str:
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items() if _text(value)}
    if "image/png" in data:
        pictures[f"{picture}.png"] = base64.b64decode(data["image/png"])
        return f"![]({picture}.png)"
    if "image/svg+xml" in data:
        pictures[f"{picture}.svg"] = data["image/svg+xml"].encode()
        return f"![]({picture}.svg)"
    html = data.get("text/html", "")
    if "<table" in html and not ACTIVE.search(html):
        plain = re.sub(r"<style.*?</style>|\n\s*", "", html, flags=re.DOTALL)
        return re.sub(r"<table[^>]*>", "<table>", plain)
    text = "".join(output.get("text", [])) or data.get("text/plain", "")
    return f"````text\n{text.rstrip()}\n````" if text.strip() else ""


def _text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(line, str) for line in value)
    )
