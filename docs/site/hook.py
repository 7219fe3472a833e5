"""What turns pages that are written for GitHub into those of the site; mkdocs.yml names it.

Files outside of docs/ that pages link to (README.md, benchmarks/results/...) become pages below
repository/, and links are turned to where things are on the site. Comments are left out.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files, InclusionLevel
from notebook_page import page_of  # beside this file

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

DOCS = "docs"
OUTSIDE = "repository"  # the folder on the site for what is outside of docs/
NOTEBOOK = ".ipynb"
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".yml": "yaml"}
PICTURES = {".png", ".svg", ".jpg"}

LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")
COMMENT = re.compile(r"^<!--.*?-->\n?", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1`*[ ]*$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks of docs/, and every file outside of it that a page links to."""
    root = Path(config.config_file_path).parent
    for file in list(files):
        if file.src_uri.endswith(NOTEBOOK):
            text = Path(root, DOCS, file.src_uri).read_text(encoding="utf-8")
            source = _on_site(f"{DOCS}/{file.src_uri}")
            page, pictures = page_of(text, Path(file.src_uri).stem)
            files.append(File.generated(config, source, content=page))
            for name, content in pictures.items():
                files.append(File.generated(config, name, content=content))
    waiting = [
        (f"{DOCS}/{file.src_uri}", file.content_string) for file in files.documentation_pages()
    ]
    seen: set[str] = set()
    while waiting:
        for target in _targets(*waiting.pop(), root):
            if target.startswith(f"{DOCS}/") or target in seen:
                continue
            seen.add(target)
            file = _outside(target, root, config)
            files.append(file)
            if target.endswith(".md"):
                waiting.append((target, file.content_string))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page, and leave its comments out."""
    root = Path(config.config_file_path).parent
    source = _in_repository(page.file.src_uri)
    if page.parent is None:  # it has no neighbours for the bar at the left to show
        page.meta["hide"] = ["navigation"]

    def turn(link: re.Match[str]) -> str:
        target, anchor = _resolve(source, link[0], root)
        if target is None:
            return link[0]
        here = posixpath.dirname(page.file.src_uri) or "."
        return posixpath.relpath(_on_site(target), here) + anchor

    return _outside_of_fences(markdown, lambda text: LINK.sub(turn, COMMENT.sub("", text)))


def _outside(target: str, root: Path, config: MkDocsConfig) -> File:
    """A file of the repository as a page of the site, or a picture as it is."""
    path = root / target
    if path.suffix in PICTURES:
        return File.generated(config, _on_site(target), content=path.read_bytes())
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        text = f"# {target}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n````\n"
    return File.generated(
        config, _on_site(target), content=text, inclusion=InclusionLevel.NOT_IN_NAV
    )


def _on_site(path: str) -> str:
    """The source of a file of the repository, as mkdocs names it: `docs/x.md` is `x.md`."""
    inside = path.removeprefix(f"{DOCS}/") if path.startswith(f"{DOCS}/") else f"{OUTSIDE}/{path}"
    ending = posixpath.splitext(path)[1]
    if ending == NOTEBOOK:
        return inside.removesuffix(NOTEBOOK) + ".md"
    return inside if ending in PICTURES | {".md"} else f"{inside}.md"


def _in_repository(source: str) -> str:
    """The other way round."""
    if source.startswith(f"{OUTSIDE}/"):
        return source.removeprefix(f"{OUTSIDE}/")
    return f"{DOCS}/{source}"


def _resolve(page: str, link: str, root: Path) -> tuple[str | None, str]:
    """The file that a link of a page means, from the repository's root, and the anchor."""
    path, sharp, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return None, ""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    if target.startswith("..") or not os.path.isfile(root / target):
        return None, ""  # mkdocs says what is wrong with it
    return target, sharp + anchor


def _targets(page: str, text: str, root: Path) -> Iterator[str]:
    for link in LINK.findall(FENCE.sub("", text)):
        target, _ = _resolve(page, link, root)
        if target is not None:
            yield target


def _outside_of_fences(markdown: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])
