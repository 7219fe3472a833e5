"""Live progress: a panel on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.dispatch.planner import Plan
from ensemble_sae.pages import live
from ensemble_sae.run import Checkpoint
from ensemble_sae.sweep import Member

PLAIN_S = 10.0  # between two plain lines
WINDOW_S = 15.0  # over which the speed is averaged


class Speed:
    """Rows per second over the last seconds, and over the whole training."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.rows = self.sae_rows = 0
        self._seen: deque[tuple[float, int, int]] = deque()

    def add(self, rows: int, sae_rows: int) -> None:
        """Count rows that were trained on since the last call."""
        now = time.monotonic()
        self.rows += rows
        self.sae_rows += sae_rows
        self._seen.append((now, self.rows, self.sae_rows))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()

    def now(self) -> tuple[float, float]:
        """Rows/s and SAE-rows/s of the last seconds."""
        if len(self._seen) < 2:
            return 0.0, 0.0
        (t0, r0, s0), (t1, r1, s1) = self._seen[0], self._seen[-1]
        passed = max(t1 - t0, 1e-9)
        return (r1 - r0) / passed, (s1 - s0) / passed


def default_observer() -> Observer:
    """Who watches a sweep that is started from Python: in a notebook a display, else nobody."""
    return Display(Console()) if live.in_notebook() else Observer()


class _Live(Protocol):
    """Something that shows the panel."""

    def update(self, renderable: Any) -> None: ...

    def stop(self) -> None: ...


class _Notebook:
    """The panel as an output of the running cell, which stays as it was at the end."""

    def __init__(self) -> None:
        self._panel = live.Panel()
        self._last: Any = None

    def update(self, renderable: Any) -> None:
        self._last = renderable
        self._panel.update(self._html)

    def stop(self) -> None:
        if self._last is not None:
            self._panel.update(self._html, at_once=True)

    def _html(self) -> str:
        console = Console(file=io.StringIO(), record=True, width=100, force_jupyter=False)
        console.print(self._last)
        return console.export_html(inline_styles=True, code_format=_CODE)


_CODE = '<pre style="line-height: normal; background: none; margin: 0">{code}</pre>'


class Display(Observer):
    """Shows rows/s, SAE-rows/s, ETA, and per group the range of L0 and FVU."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.speed = Speed()
        self._means: dict[str, Mapping[str, list[float]]] = {}
        self._groups: dict[str, int] = {}  # members by name, largest first as planned
        self._group_of: dict[str, str] = {}  # of a task
        self._frozen = 0
        self._total = self._work = 1
        self._done = 0
        self._last_line = 0.0
        self._live: _Live | None = None

    def harvesting(self, progress: Any) -> None:
        if time.monotonic() - self._last_line < PLAIN_S and progress.rows != progress.rows_total:
            return
        self._last_line = time.monotonic()
        of = f" of {progress.rows_total:,}" if progress.rows_total else ""
        self.console.print(
            f"harvested {progress.rows:,}{of} rows, {progress.rows_per_second:,.0f} rows/s",
            highlight=False,
        )

    def started(self, plan: Plan, rows: int, work: int, done: int) -> None:
        self._total, self._work, self._done = rows, work, done
        self.speed = Speed()
        tasks = [task for mine in plan.tasks for task in mine]
        self._groups = {task.group.name: len(task.group.members) for task in tasks}
        self._group_of = {task.name: task.group.name for task in tasks}
        self._last_line = time.monotonic()
        if self.console.is_terminal:
            shown = Live(console=self.console, refresh_per_second=4, transient=True)
            shown.start()
            self._live = shown
        elif live.in_notebook():
            self._live = _Notebook()
        if self._live is not None:
            self._live.update(Text("starting the workers"))

    def progress(self, rows: int, sae_rows: int, means: Mapping[str, Any]) -> None:
        self.speed.add(rows, sae_rows)
        self._means.update(means)
        if self._live is not None:
            self._live.update(self._panel())
        elif time.monotonic() - self._last_line >= PLAIN_S:
            self._last_line = time.monotonic()
            self.console.print(self._line() + self._ranges(), highlight=False, soft_wrap=True)

    def frozen(self, member: Member, step: int) -> None:
        self._frozen += 1
        self.warning(
            f"member {member.id} ({member.name}): loss or gradient not finite at step {step}; "
            "frozen at its last finite state"
        )

    def saved(self, checkpoint: Checkpoint) -> None:
        if self._live is None:
            self.console.print(f"saved {checkpoint.folder.name}", highlight=False)

    def worker_died(self, device: str, reason: str, restarting: bool) -> None:
        self.warning(f"the worker on {device} died ({reason}); started again from the checkpoint")

    def evaluating(self) -> None:
        if self._live is None:
            return
        self._live.update(Text("evaluating on held-out rows"))

    def reporting(self, what: str) -> None:
        if self._live is not None:
            self._live.update(Text(f"report: {what}"))
        elif time.monotonic() - self._last_line >= PLAIN_S:
            self._last_line = time.monotonic()
            self.console.print(f"report: {what}", highlight=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True)

    def ended(self) -> None:
        if self._live is not None:
            self._live.update(self._panel())  # a notebook keeps it
            self._live.stop()
            self._live = None

    def _share(self) -> float:
        """The share of all workers' work that is done."""
        return min(1.0, (self._done + self.speed.rows) / max(self._work, 1))

    def _line(self) -> str:
        work_s, sae_rows_s = self.speed.now()
        rows_s = work_s * self._total / max(self._work, 1)
        line = f"{self._share() * self._total:,.0f} of {self._total:,} rows, {rows_s:,.0f} rows/s, "
        line += f"{sae_rows_s:,.0f} SAE-rows/s{self._eta(rows_s)}"
        return line + (f", {self._frozen} frozen" if self._frozen else "")

    def _ranges(self) -> str:
        l0 = _range(self._means.values(), "l0", ".1f")
        fvu = _range(self._means.values(), "fvu", ".3f")
        return f", L0 {l0}, FVU {fvu}" if l0 and fvu else ""

    def _eta(self, rows_s: float) -> str:
        if rows_s <= 0:
            return ""
        left = int((1 - self._share()) * self._total / rows_s)
        clock = f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}"
        return f", {clock.removeprefix('0:')} left"

    def _panel(self) -> Table:
        groups = Table(box=None, pad_edge=False, header_style="dim")
        groups.add_column("group")
        groups.add_column("members", justify="right")
        groups.add_column("L0", justify="right")
        groups.add_column("FVU", justify="right")
        for name in self._groups:
            parts = [v for task, v in self._means.items() if self._group_of.get(task) == name]
            groups.add_row(
                name,
                str(self._groups[name]),
                _range(parts, "l0", ".1f"),
                _range(parts, "fvu", ".3f"),
            )
        bar = ProgressBar(total=1.0, completed=self._share(), width=60)
        grid = Table.grid()
        for part in (bar, Text(self._line()), groups):
            grid.add_row(part)
        return grid


def _range(several: Any, name: str, form: str) -> str:
    """`lowest..highest` of a mean over members, without those that are not numbers."""
    values = [v for means in several for v in means.get(name, []) if v == v]
    return f"{min(values):{form}}..{max(values):{form}}" if values else ""
