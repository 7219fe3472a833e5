"""How fast the report's page is: 500 members, and two with 16,384 features each.

    python benchmarks/report_page.py

Makes up a run of that size, writes its page as a report is written, opens it in headless Chromium
(apt-get install chromium) and takes the time of what a reader does. Writes
`benchmarks/results/report_page.md`; `--docs` also replaces the block `<!-- report_page -->` of
docs/report.md; `--members`, `--rounds`, `--features` for another size.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from readme import ROOT, replace
from report_page_data import data_of, looked_at
from rich.console import Console

from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.reporting.browser import browsed
from ensemble_sae.reporting.page import page

DOCS = ROOT / "docs" / "report.md"
OUT = Path(__file__).parent / "results" / "report_page.md"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TURNS = 3  # of each action, on a page opened anew
SHOT = 2  # animation frames after which what was asked for is on the screen
MOVES: dict[str, tuple[str, str]] = {  # what a reader does -> (before, the thing itself)
    "take a value out by a filter": (
        "here('figure-pareto'); await has('#figure-pareto .points')",
        "document.querySelector('[data-axis=dict_ratio] input').click()",
    ),
    "choose the next member by an arrow key": (
        "here('figure-pareto'); await has('#figure-pareto .points')",
        "document.querySelector('#figure-pareto .plot').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))",
    ),
    "search the table": (
        "",
        "const box = document.getElementById('search'); box.value = 'untied';"
        "box.dispatchEvent(new Event('input'))",
    ),
    "draw all members' training curves": (
        "here('figure-training'); await has('#figure-training .main-svg')",
        "const box = document.querySelectorAll('#figure-training select')[1]; box.value = 'all';"
        "box.dispatchEvent(new Event('change'))",
    ),
    "open the feature browser": ("", "here('features'); await has('#feature h3')"),
    "search its features, the first time": (
        "here('features'); await has('#feature h3')",
        "const box = document.getElementById('feature-search'); box.value = 'word12';"
        "box.dispatchEvent(new Event('input'))",
    ),
    "search them again": (
        "here('features'); await has('#feature h3');"
        "const box = document.getElementById('feature-search'); box.value = 'word';"
        "box.dispatchEvent(new Event('input'))",
        "const box = document.getElementById('feature-search'); box.value = 'word12';"
        "box.dispatchEvent(new Event('input'))",
    ),
    "sort them": (
        "here('features'); await has('#feature h3')",
        "const box = document.querySelector('#feature-sort select'); box.value = 'density';"
        "box.dispatchEvent(new Event('change'))",
    ),
    "show another feature": (
        "here('features'); await has('#feature h3')",
        "document.querySelectorAll('#feature-list button')[7].click()",
    ),
}
TIMED = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  const has = async (what) => { while (!document.querySelector(what)) await frame(); };
  const here = (id) => document.getElementById(id).scrollIntoView();
  { BEFORE }
  await frame(); await new Promise((done) => setTimeout(done, 300));
  const began = performance.now();
  { ACTION }
  for (let i = 0; i < SHOT; i += 1) await frame();
  return (performance.now() - began) / 1000;
}"""


def write(path: Path, members: int, rounds: int, features: int) -> dict[str, float]:
    """Write the page; seconds of its parts."""
    began = time.perf_counter()
    chosen = [looked_at(member, features) for member in (3, members // 2)]
    made = time.perf_counter()
    data = data_of(members, rounds, chosen)
    blocks = {one.member: browsed(one) for one in chosen}
    gathered = time.perf_counter()
    path.write_text(page(data, blocks), encoding="utf-8")
    return {
        "made": made - began,
        "gathered": gathered - made,
        "written": time.perf_counter() - gathered,
    }


def timed(before: str, action: str) -> str:
    """The script that does one thing and says how long it took."""
    return TIMED.replace("BEFORE", before).replace("ACTION", action).replace("SHOT", str(SHOT))


def measure(path: Path, say: Callable[[str], object]) -> dict[str, list[float]]:
    """Seconds of every turn, by action; each on a page opened anew."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        executable = next((p for name in BROWSERS if (p := shutil.which(name))), None)
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        version = browser.version
        for turn in range(TURNS):
            for what, (before, action) in MOVES.items():
                say(f"turn {turn + 1} of {TURNS}: {what}")
                own = browser.new_page(viewport={"width": 1280, "height": 900})
                began = time.perf_counter()
                own.goto(path.as_uri())
                own.wait_for_selector("html[data-ready=yes]", timeout=120_000)
                found.setdefault("open the page", []).append(time.perf_counter() - began)
                own.wait_for_selector("#figure-pareto .points path", timeout=120_000)
                found.setdefault("... with its frontier drawn", []).append(
                    time.perf_counter() - began
                )
                found.setdefault(what, []).append(own.evaluate(timed(before, action)))
                own.close()
        browser.close()
    return found | {f"Chromium {version}": []}


def table(found: dict[str, list[float]]) -> str:
    """A row for each action."""
    lines = ["| what | seconds, median | slowest |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {median(own):.2f} | {max(own):.2f} |" for name, own in found.items() if own
    ]
    return "\n".join(lines)


def sized(asked: Any, size: int) -> str:
    """How large the page is, and what is in it."""
    return (
        f"{asked.members} members, {asked.rounds} rounds, and the features of two members with"
        f" {asked.features:,} each: a page of {size / 2**20:.1f} MiB; {hardware()}."
    )


def text_of(found: dict[str, list[float]], size: int, asked: Any, took: dict[str, float]) -> str:
    """The page of results."""
    browser = next(name for name, own in found.items() if not own)
    packages = ("ensemble-sae", "plotly", "playwright")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"# The report's page\n\n{hardware()}, threads used: {torch.get_num_threads()}; {browser},"
        f" headless, {versions}; {datetime.now(UTC):%Y-%m-%d}.\nMade by `python"
        f" benchmarks/report_page.py`.\n\n{sized(asked, size)}\nIts data were gathered in"
        f" {took['gathered']:.1f} s, and it was written in {took['written']:.1f} s.\n\n"
        f"{table(found)}\n\n"
        "*Open the page*: from the address to all parts being there, data unpacked and the table"
        " filled; all its\nturns. The others: from the act to the second frame after it, in"
        f" {TURNS} turns, each on a page\nopened anew. The numbers are made up; their sizes are"
        " those of a sweep.\n"
    )


def main(arguments: list[str]) -> None:
    """Make, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.html"
        took = write(path, asked.members, asked.rounds, asked.features)
        found = measure(path, lambda what: console.print(what, highlight=False))
        size = path.stat().st_size
    text = text_of(found, size, asked, took)
    asked.out.write_text(text, encoding="utf-8")
    if asked.docs:
        short = f"{sized(asked, size)}\n\n{table(found)}\n"
        DOCS.write_text(replace(DOCS.read_text(encoding="utf-8"), "report_page", short), "utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
