"""What is in a page: its blocks of data, its scripts, its policy; and a run to report."""

from __future__ import annotations

import base64
import gzip
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LOOKED = (0, 3)  # members whose features are looked at, the first of them with effects
KNOWN = """
kind = "synthetic"
name = "known"
hooks = ["uncorrelated"]
d_activation = 8
n_features = 16
mean_active = 3
rows = 3_000
chunk_rows = 1_000
held_out = {held_out}
"""
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"


class Parsed(HTMLParser):
    """Elements as a browser would find them.

    Attributes:
        found: (tag, attributes) in order. scripts: (attributes, text).
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def blocks(page: str) -> dict[str, Any]:
    """The page's data by the id of their element."""
    packed = {one["id"]: text for one, text in Parsed(page).scripts if "id" in one}
    return {
        str(name): json.loads(gzip.decompress(base64.b64decode(own)))
        for name, own in packed.items()
    }


def data_of(path: Path) -> dict[str, Any]:
    """What a written report says of the run."""
    return blocks(path.read_text(encoding="utf-8"))["data"]


def rows(data: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The members of a page, by id."""
    told = data["members"]
    return {
        member: {name: values[place] for name, values in told["columns"].items()}
        for place, member in enumerate(told["ids"])
    }


def train_known(path: Path, members: list[dict[str, Any]], held_out: float = 0.34) -> None:
    """Train members on rows of which the features are known."""
    from ensemble_sae import run_sweep

    recipe = path.with_suffix(".toml")
    recipe.write_text(KNOWN.format(held_out=held_out))
    run_sweep(
        members,
        activations={"recipe": str(recipe)},
        train={"batch_size": 50, "lr": 3e-3},
        run=path,
        data_dir=path.with_suffix(".data"),
        devices="cpu:1",
        threads=1,
        report=False,
    )
