"""Runs to report: of the embedded model, evaluated and looked at; and of known features."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from in_browser import CHROMIUM, PATIENCE, Open
from page_parts import LOOKED, train_known
from small_lm_run import bridge, folder, trained

__all__ = ["bridge", "evaluated", "folder", "known", "opened", "reported", "tab", "trained"]

COUNTED = 20_000  # tokens by which an evaluation tells frequent ones


@pytest.fixture(scope="session")
def evaluated(trained: Path, bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with an evaluation and two members looked at: to be copied, not written to."""

    def make(path: Path) -> None:
        from ensemble_sae.evaluation import Request, evaluate, stage
        from ensemble_sae.inspection import request
        from ensemble_sae.run import load

        shutil.copytree(trained, path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "COUNTED", COUNTED)
            patch.setattr(stage, "load_model", lambda *_: bridge)
            patch.setattr(request, "load_model", lambda *_: bridge)
            evaluate(load(path), Request(members=range(5), rows=310))
            desk = request.Desk(load(path), count=60, width=16, per_document=2)
            for member in LOOKED:
                desk.features(member, effects=member == LOOKED[0])

    return _once(tmp_path_factory, "evaluated-run", make)


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on known features, of two sizes and two seeds: to be copied, not written to."""
    members = [
        {"signature": "tied", "n_dict": n, "l1": 1e-2, "seed": seed}
        for n in (12, 24)
        for seed in (0, 1)
    ]
    return _once(tmp_path_factory, "known-run", lambda path: train_known(path, members))


@pytest.fixture(scope="session")
def reported(evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small run, its report written; in a folder with a blank."""
    from ensemble_sae.reporting import write_report
    from ensemble_sae.run import load

    folder = tmp_path_factory.mktemp("in browser") / "run"
    shutil.copytree(evaluated, folder)
    write_report(load(folder))
    return load(folder)


@pytest.fixture(scope="module")  # its event loop must not meet other tests'
def tab() -> Iterator[Any]:
    """A browser's tab without a network. A page that is opened in it again need not be compiled
    again, which takes most of the time.
    """
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium (or google-chrome)")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        yield page
        browser.close()


@pytest.fixture
def opened(tab: Any, reported: Any) -> Iterator[Open]:
    """Open a page anew; in the end nothing may have gone wrong or been asked for."""
    wrong: list[str] = []
    inside: list[str] = ["data:", "blob:", "about:"]
    listeners = {
        "pageerror": lambda error: wrong.append(f"error: {error}"),
        "console": lambda said: wrong.append(f"console: {said.text}"),
        "dialog": lambda dialog: wrong.append(f"dialog: {dialog.message}"),
        "request": lambda asked: asked.url.startswith(tuple(inside)) or wrong.append(asked.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)

    def load(
        path: Path | None = None, hash: str = "", width: int = 1280, scheme: str = "light"
    ) -> Any:
        address = (path or reported.path / "report" / "index.html").as_uri()
        inside.append(address)
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        tab.goto(address + hash)
        tab.wait_for_selector("html[data-ready=yes]")
        return tab

    yield load
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    tab.evaluate("localStorage.clear()")
    tab.goto("about:blank")
    assert wrong == []


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, by the first worker that needs it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder / "run")
            (folder / "done").touch()
    return folder / "run"
