"""What a study is asked for, and the training that all studies share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ensemble_sae.dispatch.observer import Observer, Observers
from ensemble_sae.engine.display import Display
from ensemble_sae.engine.run_sweep import run_sweep
from ensemble_sae.run import Layout, Run
from ensemble_sae.sweep import load_sweep


@dataclass(frozen=True)
class Request:
    """The options of `python -m ensemble_sae.study`; see there."""

    name: str
    out: Path
    quick: bool = False
    settings: tuple[str, ...] = ()
    gpus: int | None = None
    devices: str | None = None
    threads: int | None = None
    data_dir: Path | None = None

    def train(
        self,
        sweep: str,
        console: Console,
        *,
        settings: tuple[str, ...] = (),
        folder: str = "run",
        observer: Observer | None = None,
    ) -> Run:
        """Train a sweep into a folder of the study, or go on with the one that is there.

        Args:
            settings: over the sweep's file; those of the request come after them.

        Raises:
            UserError: the run in the folder was begun with other settings; as `run_sweep`.
            Interrupted: when everything is saved; the same command goes on.
        """
        loaded, where = load_sweep(sweep, (*settings, *self.settings), self.quick)
        watching = [Display(console), *([observer] if observer else [])]
        return run_sweep(
            loaded,
            run=self.out / folder,
            resume=Layout(self.out / folder).exists(),
            gpus=self.gpus,
            devices=self.devices,
            threads=self.threads,
            data_dir=self.data_dir or self.out / "data",
            observer=Observers(*watching),
            where=where,
        )
