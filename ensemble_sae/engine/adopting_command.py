"""What `adopt` does with its options: make the run, show its table, say what is next."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemble_sae.data.progress import Progress
from ensemble_sae.engine.adopting import adopted
from ensemble_sae.run import Run
from ensemble_sae.terminal import INTERRUPTED, Ended, left, progress, spelled


def execute(
    folders: Sequence[Path],
    run: Path,
    *,
    hook: str | None,
    recipe: str | None,
    model: str | None,
    dataset: str | None,
    rows: bool,
    data_dir: Path | None,
) -> int:
    """Adopt and print; returns the exit code: 0, or 130 after SIGINT.

    Raises:
        UserError: see `adopted`.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is for other uses
    console = Console()

    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        with progress("reading") as show:

            def on_progress(now: Progress) -> None:
                show(now.rows, now.rows_total, f"{now.rows:,} rows{left(now.seconds_left)}")

            made = adopted(
                folders,
                run=run,
                hook=hook,
                recipe=recipe,
                model=model,
                dataset=dataset,
                rows=rows,
                data_dir=data_dir,
                tell=tell,
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        tell("Interrupted: no run was made. Rows that were harvested are kept.")
        return Ended(INTERRUPTED, interrupted=True)
    console.print(_shown(made))
    tell(f"{len(made.members)} adopted as members of {run}. Next:")
    tell(f"  {spelled('evaluate', str(run))}")
    members = made.members.reset_index().to_dict("records")
    return Ended(0, run=run, members=members, origin=made.status["origin"])


def _shown(run: Run) -> Table:
    """Members under their names, from the sparsest on; Pareto-best ones with a star."""
    shown = Table(header_style="bold", pad_edge=False, box=None)
    shown.add_column("", width=1)
    shown.add_column("id", justify="right")
    shown.add_column("member", overflow="fold")
    for name in ("features", "L0", "FVU", "dead"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("flags")
    rows: list[dict[Any, Any]] = run.members.reset_index().sort_values("l0").to_dict("records")
    for row in rows:
        cells = [
            "★" if row["pareto"] else "",
            str(row["id"]),
            escape(row["name"]),
            f"{row['n_dict']:,}",
        ]
        if math.isnan(row["fvu"]):
            cells += ["", "", ""]
        else:
            cells += [f"{row['l0']:.1f}", f"{row['fvu']:.4f}", f"{100 * row['dead']:.1f}%"]
        shown.add_row(*cells, row["flags"])
    return shown
