"""The way of a new user from nothing to a feature and to another package, timed.

    python benchmarks/new_user.py --work build/new_user

A clone, `make sweep`, the report in a browser, the best member at an L0 near 20, its five most
interpretable features, the member in Python, its export, and SAELens that loads it. Each step is
what the pages say, no more: the lines that are run are those that the report shows. Fills the block
`<!-- new_user -->` of docs/first_sweep.md. Needs Chromium; takes a quarter of an hour on two
cores.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import readme

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first_sweep.md"
SAELENS = (
    "from sae_lens import SAE; import torch; sae = SAE.load_from_disk({folder!r}); "
    "x = torch.randn(8, sae.cfg.d_in); print(tuple(sae.encode(x).shape))"
)


class Steps:
    """What was done, how long it took, what was seen."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, str]] = []

    def do(self, what: str, work: Callable[[], str]) -> None:
        """Do a step and keep its time."""
        began = time.perf_counter()
        seen = work()
        self.rows.append((what, time.perf_counter() - began, seen))
        print(f"{self.rows[-1][1]:7.1f} s  {what}: {seen}", flush=True)


def run(*words: str | Path, cwd: Path) -> str:
    """A command's output; what it said if it failed."""
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{words} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


class Reader:
    """Someone in front of the report."""

    def __init__(self, playwright: Any, page: Path) -> None:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        if path is None:
            raise SystemExit("there is no Chromium here: apt-get install chromium")
        self.browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        self.page = self.browser.new_page(viewport={"width": 1280, "height": 900})
        self.address = page.resolve().as_uri()

    def open(self) -> str:
        """Open the page."""
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready=yes]")
        return f"{self.page.locator('#facts dd').first.text_content()}"

    def find(self) -> str:
        """Choose the best member at an L0 of 20."""
        self.page.fill("#wanted", "20")
        self.page.click("#find")
        facts = self.page.locator("#chosen .facts").first.locator("div")
        told = {
            one.locator("dt").text_content(): one.locator("dd").text_content()
            for one in facts.all()
        }
        name = self.page.locator("#chosen h3").text_content().partition(" member")[0]
        return f"`{name}`, L0 {told['L0']}, FVU {told['FVU']}"

    def features(self) -> str:
        """Look at its five most interpretable features."""
        self.page.click("#its-features")
        listed = self.page.locator("#feature-list li")
        listed.first.wait_for()
        seen = []
        for place in range(5):
            listed.nth(place).locator("button").click()
            index = listed.nth(place).locator(".index").text_content()
            contexts = self.page.locator("#feature .contexts li").count()
            seen.append(f"{index} ({contexts} contexts)")
        return "features " + ", ".join(seen)

    def lines(self) -> tuple[str, str]:
        """The Python and the command that the page shows for the chosen member."""
        python, command = self.page.locator("#chosen .two pre").all_text_contents()
        return python, command


def walk(work: Path, saelens: str, steps: Steps) -> None:
    """All steps, in order."""
    from playwright.sync_api import sync_playwright

    home = work / "ensemble-sae"
    steps.do("clone", lambda: run("git", "clone", "--quiet", ROOT, home, cwd=work))
    steps.do("`make sweep`: install", lambda: run("make", "install", cwd=home)[:0])
    steps.do("`make sweep`: harvest, train, evaluate, look, report", lambda: _sweep(home))
    report = home / "runs" / "default" / "report" / "index.html"
    with sync_playwright() as playwright:
        reader = Reader(playwright, report)
        steps.do("open the report", reader.open)
        steps.do("find the best member at an L0 near 20", reader.find)
        steps.do("look at its five most interpretable features", reader.features)
        python, command = reader.lines()
        reader.browser.close()
    mine = home / ".venv" / "bin" / "python"
    steps.do("load it in Python", lambda: _python(mine, python, home))
    words = command.replace("\\\n", " ").split()[1:]
    steps.do("export it", lambda: run(mine, *words, cwd=home).splitlines()[0])
    steps.do("load it with SAELens", lambda: _saelens(saelens, words[-1], home))


def _saelens(python: str, folder: str, home: Path) -> str:
    said = run(python, "-c", SAELENS.format(folder=folder), cwd=home).splitlines()
    return f"codes of shape {said[-1]}"


def _sweep(home: Path) -> str:
    said = run("make", "sweep", cwd=home)
    return next(line for line in reversed(said.splitlines()) if " members, " in line)


def _python(python: Path, lines: str, home: Path) -> str:
    return f"`{run(python, '-c', lines + chr(10) + 'print(sae)', cwd=home).strip()}`"


def table(steps: Steps, hardware: str) -> str:
    """The steps as Markdown."""
    lines = ["| step | seconds | what was seen |", "|---|--:|---|"]
    lines += [f"| {what} | {seconds:.1f} | {seen} |" for what, seconds, seen in steps.rows]
    total = sum(seconds for _, seconds, _ in steps.rows) / 60
    lines += [
        "",
        f"{total:.0f} minutes in all on {hardware}; how long the installation takes depends on the "
        "network, and the environment of SAELens was there before. Made by "
        "`python benchmarks/new_user.py --work build/new_user`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Walk, and fill the page's block."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "benchmarks" / "peers")]
    from environments import ENVIRONMENTS, python_of

    from ensemble_sae.dispatch.devices import hardware

    saelens = str(python_of(ENVIRONMENTS["saelens"], print))
    options.work.mkdir(parents=True)
    steps = Steps()
    walk(options.work.resolve(), saelens, steps)
    text = readme.replace(
        options.page.read_text(encoding="utf-8"), "new_user", table(steps, hardware())
    )
    options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
