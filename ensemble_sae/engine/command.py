"""What `big_sweep` does with its options: run, or show what would run, and say how it ended."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ensemble_sae.config.strict import validate
from ensemble_sae.data.location import data_dir as default_data_dir
from ensemble_sae.dispatch import devices as device_choice
from ensemble_sae.dispatch.dispatcher import Interrupted
from ensemble_sae.dispatch.observer import Observer, Observers
from ensemble_sae.engine import printed, stores
from ensemble_sae.engine.display import Display
from ensemble_sae.engine.dry_run import facts, show
from ensemble_sae.engine.prepared import prepare
from ensemble_sae.engine.run_sweep import run_sweep
from ensemble_sae.engine.wandb_log import Mode, WandbLog, resolve_mode
from ensemble_sae.errors import UserError
from ensemble_sae.run import Layout, Run
from ensemble_sae.run.layout import read_versioned
from ensemble_sae.sweep import Sweep, load_sweep
from ensemble_sae.terminal import Ended, spelled


@dataclass(frozen=True)
class Options:
    """The options of `big_sweep`; see there."""

    sweep: str | None = None
    gpus: int | None = None
    devices: str | None = None
    threads: int | None = None
    run: Path | None = None
    resume: bool = False
    settings: tuple[str, ...] = ()
    quick: bool = False
    stream: bool = False
    discard: bool = False
    wandb: str = "auto"
    data_dir: Path | None = None
    dry_run: bool = False
    report: bool = True


def execute(options: Options, console: Console | None = None) -> int:
    """Run the sweep; returns the exit code: 0, or 130 / 143 after SIGINT / SIGTERM."""
    console = console or Console()
    if options.discard and not options.stream:
        raise UserError("--discard goes with --stream.", next_step="--stream --discard")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is for other uses
    sweep, where = _sweep(options)
    if options.dry_run:
        chosen = device_choice.choose(options.gpus, options.devices, options.threads)
        sources = stores.locate(sweep.activations, default_data_dir(options.data_dir))
        found = facts(prepare(sweep, where, sources, chosen, None))
        show(found, console)
        return Ended(0, **found)
    mode = resolve_mode(options.wandb)
    display = Display(console)
    try:
        run = run_sweep(
            sweep,
            run=options.run,
            devices=options.devices,
            gpus=options.gpus,
            threads=options.threads,
            resume=options.resume,
            stream=options.stream,
            discard=options.discard,
            data_dir=options.data_dir,
            observer=Observers(display, *_wandb(mode, display)),
            report=options.report,
            where=where,
        )
    except Interrupted as interruption:
        return _say_how_to_go_on(interruption, options, console)
    except KeyboardInterrupt:
        console.print("Ended at once; --resume goes on from the last checkpoint.")
        return Ended(128 + signal.SIGINT, interrupted=True)
    _say_the_end(run, display, console)
    status = {key: run.status.get(key) for key in ("status", "seconds", "busy_s", "stall_s")}
    report = Layout(run.path).report
    members = run.members.reset_index().to_dict("records")
    there = report if report.is_file() else None
    return Ended(0, run=run.path, **status, report=there, members=members)


def _sweep(options: Options) -> tuple[Sweep, str]:
    """The sweep that is named; or, to resume a run, the one that it began with."""
    if options.sweep is None and options.resume and options.run is not None:
        layout = Layout(options.run)
        if layout.exists() and not options.settings and not options.quick:
            known = read_versioned(layout.sweep)["sweep"]
            return validate(Sweep, known, str(layout.sweep)), str(layout.sweep)
    return load_sweep(options.sweep or "default", options.settings, options.quick)


def _wandb(mode: Mode, display: Display) -> list[Observer]:
    if mode == "off":
        return []
    project = os.environ.get("WANDB_PROJECT", "ensemble-sae")
    return [WandbLog(mode, project, display.warning)]


def _say_how_to_go_on(interruption: Interrupted, options: Options, console: Console) -> int:
    folder = interruption.folder
    words = ["--run", str(folder), "--resume"]
    values = {
        "--devices": options.devices,
        "--gpus": options.gpus,
        "--threads": options.threads,
        "--data-dir": options.data_dir,
    }
    for name, value in values.items():
        words += [name, str(value)] if value is not None else []
    words += ["--stream"] if options.stream else []
    words += ["--discard"] if options.discard else []
    words += [] if options.report else ["--no-report"]
    words += ["--wandb", options.wandb] if options.wandb != "auto" else []
    console.print(
        f"Interrupted; everything is saved in {folder}. To go on:", highlight=False, soft_wrap=True
    )
    command = spelled("big_sweep", *words)
    console.print(f"  {command}", highlight=False, soft_wrap=True)
    return Ended(128 + interruption.signal, interrupted=True, run=folder, next_step=command)


def _say_the_end(run: Run, display: Display, console: Console) -> None:
    table = run.members.reset_index()
    printed.print_table(table, console)
    speed, seconds = display.speed, run.status.get("seconds", 0.0)
    busy, stall = run.status["busy_s"], run.status["stall_s"]
    console.print(
        f"{len(table)} members, {seconds:,.0f} s, {speed.sae_rows:,} SAE-rows, "
        f"{100 * stall / max(busy, 1e-9):.2f}% of the time waiting for data",
        highlight=False,
    )
    if (report := Layout(run.path).report).is_file():
        console.print(f"The report: {report}", highlight=False, soft_wrap=True)
    console.print(f"The run is in {run.path}. In Python:", highlight=False, soft_wrap=True)
    console.print(f'  run = ensemble_sae.load("{run.path}")', highlight=False, soft_wrap=True)
    console.print("  run.members; run.sae(0).encode(rows)", highlight=False, soft_wrap=True)
