"""The site is built from the pages: strictly, whole, and without anything from other hosts."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from pages import PAGES, ROOT

needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material")),
    reason="mkdocs-material is not installed: pip install -e '.[docs]'",
)
LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "object": "data",
    "embed": "src",
}


class Html(HTMLParser):
    """What a page links to, what it loads, its anchors, and the text of its paragraphs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.paragraphs: list[str] = []
        self.classes: set[str] = set()
        self._in_paragraph = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if LOADED.get(tag) in found:
            self.loads.append(found[LOADED[tag]])
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.classes |= set(found.get("class", "").split())
        if tag == "p":
            self._in_paragraph = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._in_paragraph = False

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> dict[Path, Html]:
    """Every page of the site."""
    files = [path for path in folder.rglob("*.html") if path.name != "404.html"]
    return {path: Html(path.read_text(encoding="utf-8")) for path in files}


@needs_mkdocs
def test_every_page_is_in_the_navigation(folder: Path, site: dict[Path, Html]) -> None:
    docs = [page.path for page in PAGES if page.path.parent.name == "docs"]
    docs += (ROOT / "docs").glob("*.ipynb")
    assert {f"{path.stem}.html" for path in docs} <= set(site[folder / "index.html"].links)


@needs_mkdocs
def test_links_and_anchors_lead_somewhere(folder: Path, site: dict[Path, Html]) -> None:
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https", f"{path.name}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_relative_to(folder.resolve()), f"{path.name}: {link}"
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in site[target].anchors, f"{path.name}: {link}"


@needs_mkdocs
def test_nothing_is_loaded_from_elsewhere(folder: Path, site: dict[Path, Html]) -> None:
    for path, page in site.items():
        for load in page.loads:
            if load.startswith("data:"):
                continue
            assert not urlsplit(load).netloc, f"{path.name} loads {load}"
            assert (path.parent / unquote(urlsplit(load).path)).exists(), f"{path.name}: {load}"
        assert "mermaid" not in page.classes, f"{path.name}: its script would come from a CDN"
    for sheet in folder.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)[\s'\"]*(?:https?:)?//[^)'\"]+", sheet.read_text())
        assert not found, sheet.name


@needs_mkdocs
def test_pages_are_read_as_github_reads_them(site: dict[Path, Html]) -> None:
    """A table or a list that is taken for a paragraph; a comment or a fence that is shown."""
    for path, page in site.items():
        for text in page.paragraphs:
            for wrong in (r"^\s*\|", r"^\s*[*-] ", r"^\d+\. ", "```", "<!--"):
                assert not re.search(wrong, text, re.MULTILINE), f"{path.name}: {text}"
        assert "not run:" not in path.read_text(encoding="utf-8"), path.name


@needs_mkdocs
def test_files_outside_of_docs_are_there_too(folder: Path, site: dict[Path, Html]) -> None:
    readme = site[folder / "repository/index.html"]
    assert "../first_sweep.html" in readme.links
    assert "MIT" in (folder / "repository/LICENSE.html").read_text(encoding="utf-8")
    assert not list(folder.rglob("*.py*")), "the hook is not part of the site"


def notebook_page() -> ModuleType:
    path = ROOT / "docs/site/notebook_page.py"
    spec = importlib.util.spec_from_file_location("notebook_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_notebook_becomes_a_page() -> None:
    png = base64.b64encode(b"picture").decode()
    table = '<div><style>td {}</style><table border="1">\n <tr><td>1</td></tr></table></div>'
    runs = "<table></table><script src='https://example.org/x.js'></script>"
    outputs = [
        {"output_type": "stream", "text": ["one\n", "two\n"]},
        {"output_type": "display_data", "data": {"image/png": png, "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": [table], "text/plain": "1"}},
        {"output_type": "display_data", "data": {"text/html": runs, "text/plain": "Figure()"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": "work()", "outputs": outputs},
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    page, pictures = notebook_page().page_of(json.dumps({"cells": cells}), "tour")
    assert pictures == {"tour-0.png": b"picture"}
    assert page.split("\n\n") == [
        "# Title\ntext",
        "````python\nwork()\n````",
        "````text\none\ntwo\n````",
        "![](tour-0.png)",
        "<div><table><tr><td>1</td></tr></table></div>",
        "````text\nFigure()\n````\n",
    ]
