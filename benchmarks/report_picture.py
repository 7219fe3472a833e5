"""Pictures of a run's report for the documentation: docs/figures/report_*.png.

    python benchmarks/report_picture.py --run runs/default

Needs Chromium (`apt-get install chromium`) and `pip install 'ensemble-sae[dev]'`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
WIDTH, HEIGHT = 1280, 900
PARTS = {"frontier": "#figure-pareto", "features": "#features"}
LONGEST = 1100  # pixels of a picture, from its top


def take(page: Path, folder: Path) -> list[Path]:
    """Pictures of `PARTS` of a report."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("there is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        shown.wait_for_selector("html[data-ready=yes]")
        shown.add_style_tag(content="header { position: static !important }")
        written = [_take(shown, where, folder / f"report_{n}.png") for n, where in PARTS.items()]
        browser.close()
    return written


def _take(page: Any, where: str, path: Path) -> Path:
    part = page.locator(where)
    part.evaluate("part => part.scrollIntoView()")
    page.wait_for_timeout(1500)  # figures are drawn when they come into view
    box = part.bounding_box()
    page.set_viewport_size({"width": WIDTH, "height": min(LONGEST, int(box["height"]) + 40)})
    part.evaluate("part => part.scrollIntoView()")
    page.wait_for_timeout(500)
    box = part.bounding_box()
    clip = {**box, "height": min(LONGEST, box["height"])}
    page.screenshot(path=path, clip=clip)
    return path


def main() -> None:
    """Take the pictures of one run's report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="with a report in it")
    parser.add_argument("--out", type=Path, default=FIGURES)
    options = parser.parse_args()
    for path in take(options.run / "report" / "index.html", options.out):
        print(path)


if __name__ == "__main__":
    main()
