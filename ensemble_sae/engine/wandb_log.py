"""Weights & Biases, at arm's length: a process of its own follows the run's folder.

What is sent is in `wandb_runs`, how it is followed in `wandb_child`. This side only says how far
the run is: a line into a pipe, which never waits. So a wandb that is slow, fails, hangs or does
not end costs the training nothing, and nothing piles up: what is still to be sent is on the disk.
"""

from __future__ import annotations

import json
import netrc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.dispatch.planner import Plan
from ensemble_sae.errors import UserError

Mode = Literal["online", "offline", "off"]

PATIENCE_S = 60.0  # at the end, for what is still to be sent
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # wandb's default, before and since 0.31
NOT_INHERITED = ("WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME", "WANDB_RUN_GROUP")


def resolve_mode(wanted: str) -> Mode:
    """`auto`: what WANDB_MODE says, else online when logged in, else offline. Never asks.

    Raises:
        UserError: another word.
    """
    if wanted in ("online", "offline", "off"):
        return wanted  # type: ignore[return-value]
    if wanted != "auto":
        raise UserError("Unknown wandb mode.", found=wanted, allowed="auto, online, offline, off")
    said = os.environ.get("WANDB_MODE")
    if said in ("online", "offline"):
        return said  # type: ignore[return-value]
    if said in ("disabled", "dryrun"):
        return "off" if said == "disabled" else "offline"
    return "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    """Whether wandb would find an API key: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    home = Path.home()
    places = [Path(os.environ["NETRC"])] if os.environ.get("NETRC") else []
    places += [] if places else [home / ".netrc", home / "_netrc"]
    server = os.environ.get("WANDB_BASE_URL")
    hosts = (urlsplit(server).netloc,) if server else HOSTS
    for place in places:
        with suppress(OSError, netrc.NetrcParseError):
            known = netrc.netrc(place.expanduser())
            return any(known.authenticators(host) for host in hosts)
    return False


class WandbLog(Observer):
    """Sends a sweep's metrics to wandb, or keeps them in `<run>/wandb` when offline.

    Args:
        project: wandb's name for a folder of runs; a resumed sweep stays in the one it began in.
        warn: is told, in a line, what went wrong.
    """

    def __init__(self, mode: Mode, project: str, warn: Callable[[str], None]) -> None:
        self._mode, self._project, self._warn = mode, project, warn
        self._began = 0.0
        self._rows = self._work_rows = 0
        self._child: subprocess.Popen[str] | None = None
        self._news: dict[str, Any] = {}
        self._folder = Path()

    def opened(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def started(self, plan: Plan, rows: int, work: int, done: int) -> None:
        self._work_rows = work - done
        self._child = _start(self._folder, self._mode, self._project)

    def progress(self, rows: int, sae_rows: int, means: Mapping[str, Any]) -> None:
        self._began = self._began or time.monotonic()  # not with the workers, which take a while
        self._rows += rows

    def round_done(self, number: int, rows: list[dict[str, Any]]) -> None:
        self._tell(rounds=number + 1, seconds=self._estimated_seconds())

    def finished(self, table: Any) -> None:
        self._tell(finished=True, seconds=self._estimated_seconds())

    def reported(self, page: Path) -> None:
        self._tell(page=str(page.absolute()), seconds=self._estimated_seconds())

    def ended(self) -> None:
        """Wait a while for what is still to be sent; give it up rather than hang."""
        child = self._child
        if child is None:
            return
        assert child.stdin is not None
        with suppress(OSError):
            child.stdin.close()
        try:
            child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._warn(
                f"wandb did not finish within {PATIENCE_S:.0f} s; what it has is in "
                f"{self._folder / 'wandb'}, for `wandb sync`"
            )
        finally:
            self._leave()

    def _tell(self, **news: Any) -> None:
        """Never waits: the pipe is read at all times, and lines this short go in whole."""
        if self._child is None:
            return
        assert self._child.stdin is not None
        self._news |= news  # all that is known: a line that is lost is made good by the next
        try:
            os.write(self._child.stdin.fileno(), (json.dumps(self._news) + "\n").encode())
        except BlockingIOError:  # stopped, it seems
            pass
        except OSError:
            self._leave()

    def _leave(self) -> None:
        """End the child, if it is still there, and pass on what it says went wrong."""
        child, self._child = self._child, None
        assert child is not None
        assert child.stdout is not None
        given_up = child.poll() is None
        with suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        said = child.stdout.read().splitlines()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        for line in said:
            self._warn(line)
        if child.returncode and not said and not given_up:
            self._warn(f"wandb's process ended with code {child.returncode} and is left out")

    def _estimated_seconds(self) -> float:
        passed = time.monotonic() - self._began if self._began else 0.0
        return passed * max(1.0, self._work_rows / max(self._rows, 1))


def _start(folder: Path, mode: Mode, project: str) -> subprocess.Popen[str]:
    """The process that follows; Ctrl-C does not reach it, and it can ask nobody anything."""
    package = str(Path(__file__).parents[2])
    kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    paths = [path for path in (kept.get("PYTHONPATH"), package) if path]
    child = subprocess.Popen(
        [sys.executable, "-m", "ensemble_sae.engine.wandb_child", str(folder), mode, project],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            "WANDB_DATA_DIR": str(folder / "wandb" / "staging"),  # what is not sent yet
            **kept,
            "PYTHONPATH": os.pathsep.join(paths),
            "WANDB_MODE": mode,
            "WANDB_SILENT": "true",
        },
        start_new_session=True,
    )
    assert child.stdin is not None
    os.set_blocking(child.stdin.fileno(), False)
    return child
