"""`python -m ensemble_sae.big_sweep`: train a whole sweep in one pass.

python -m ensemble_sae.big_sweep
python -m ensemble_sae.big_sweep --gpus 8
python -m ensemble_sae.big_sweep path/to/mine.toml --devices cpu:2 --set train.batch_size=4096
python -m ensemble_sae.big_sweep --run runs/default --resume
python -m ensemble_sae.big_sweep tied_vs_untied --dry-run
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemble_sae import completion
from ensemble_sae.command_line import Json
from ensemble_sae.command_line import run as run_command
from ensemble_sae.terminal import end

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="SWEEP",
        help="A built-in sweep, or a path to a .toml file; 'default' if none is named. "
        "With --resume: the sweep that the run began with.",
        show_default=False,
        autocompletion=completion.sweeps,
    ),
]


def main(
    sweep: Name = None,
    gpus: Annotated[int | None, typer.Option(help="Train on this many GPUs.")] = None,
    devices: Annotated[
        str | None, typer.Option(help="cuda:0,cuda:1 or cpu:2 (two CPU workers).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each CPU worker.")] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="The run's folder; default runs/NAME.", autocompletion=completion.runs),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="SECTION.KEY=VALUE, over the sweep's file.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The smaller version that the sweep's file gives.")
    ] = False,
    kernel: Annotated[
        str | None, typer.Option(help="auto, generic, dense or sparse: see docs/kernels.md.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32 or bf16: of matrix products.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Harvest and train at the same time.")
    ] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="With --stream: delete chunks when all used them.")
    ] = False,
    wandb: Annotated[
        str,
        typer.Option(
            help="online, offline or off; auto: online when logged in.",
            autocompletion=completion.wandb_modes,
        ),
    ] = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(help="Default: $ENSEMBLE_SAE_DATA, or ./data.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show members, groups, memory, time; train nothing.")
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write no report at the end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train every member of a sweep in one pass over the activations."""
    from ensemble_sae.engine.command import Options, execute

    options = Options(
        sweep=sweep,
        gpus=gpus,
        devices=devices,
        threads=threads,
        run=run,
        resume=resume,
        settings=(*(settings or ()), *_settings(kernel=kernel, precision=precision)),
        quick=quick,
        stream=stream,
        discard=discard,
        wandb=wandb,
        data_dir=data_dir,
        dry_run=dry_run,
        report=not no_report,
    )
    end(lambda: execute(options), as_json)


def _settings(**options: str | None) -> list[str]:
    return [f"train.{key}={value}" for key, value in options.items() if value]


if __name__ == "__main__":
    run_command(main)
