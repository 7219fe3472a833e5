"""What the tests in a browser do with a page: look, click, wait."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
PATIENCE = 4.0  # seconds

Open = Callable[..., Any]


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something; the page's policy forbids to ask for it by a string."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"never: {what}")
        time.sleep(0.02)


def drawn(page: Any, name: str) -> Any:
    """A figure, scrolled into view and drawn."""
    figure = page.locator(f"#figure-{name}")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector(f"#figure-{name} .main-svg")
    return figure


def traces(page: Any, name: str = "pareto") -> list[dict[str, Any]]:
    drawn(page, name)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 30)))")
    return page.evaluate(
        f"""[...document.querySelector('#figure-{name} .plot').data].map(({{ x, y, z, mode, name,
        customdata, text, marker }}) => ({{ x, y, z, mode, name, customdata, text, marker }}))"""
    )


def shown(page: Any) -> set[int]:
    """Members in the Pareto figure."""
    return {m for t in traces(page) if t["mode"] == "markers" for m in t.get("customdata") or ()}


def listed(page: Any) -> list[int]:
    """Members in the table, in order."""
    return [
        int(i)
        for i in page.locator("#table tbody tr").evaluate_all("r => r.map(o => o.dataset.id)")
    ]


def pick(place: Any, name: str, value: str) -> None:
    place.locator("label.pick").filter(has=place.page.get_by_text(name, exact=True)).locator(
        "select"
    ).select_option(value)


def of_hash(page: Any) -> dict[str, str]:
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def through(page: Any) -> None:
    """Look at everything once."""
    for figure in page.locator("figure").all():
        drawn(page, figure.get_attribute("id").removeprefix("figure-"))
    page.locator("#features").scroll_into_view_if_needed()
    if page.locator("#feature").count():
        page.wait_for_selector("#feature h3")


def place_of(page: Any, member: int) -> tuple[float, float]:
    """Where a member's point is on the screen."""
    drawn(page, "pareto")
    x, y = page.evaluate(
        """id => { const plot = document.querySelector('#figure-pareto .plot');
        const box = plot.getBoundingClientRect(), l = plot._fullLayout;
        for (const t of plot.data) { const i = (t.customdata || []).indexOf(id);
          if (i >= 0) return [box.x + l._size.l + l.xaxis.d2p(t.x[i]),
            box.y + l._size.t + l.yaxis.d2p(t.y[i])]; } }""",
        member,
    )
    return x, y


def hover_on(page: Any, member: int) -> None:
    page.locator("#figure-pareto .plot").scroll_into_view_if_needed()
    x, y = place_of(page, member)
    page.mouse.move(x - 1, y - 1)
    page.mouse.move(x, y)


def copied(page: Any, button: Any) -> str:
    """What a button puts on the clipboard."""
    page.evaluate("navigator.clipboard.writeText('')")
    button.click()
    until(lambda: page.evaluate("navigator.clipboard.readText()") != "", "something is copied")
    return page.evaluate("navigator.clipboard.readText()")
