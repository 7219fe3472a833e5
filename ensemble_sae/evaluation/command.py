"""What `evaluate` does with its options: choose members, evaluate, show a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ensemble_sae.errors import UserError
from ensemble_sae.evaluation.driver import Progress, evaluate
from ensemble_sae.evaluation.request import Request
from ensemble_sae.run import Run, load
from ensemble_sae.run.evaluation import Evaluation
from ensemble_sae.terminal import INTERRUPTED, Ended, left, progress, remaining

if TYPE_CHECKING:
    import pandas as pd


def execute(folder: Path, members: str | None, request: Request) -> int:
    """Evaluate and print; returns the exit code: 0, or 130 after SIGINT.

    Raises:
        UserError: see `evaluate`.
    """
    # Its advice on padded input is not for contexts without padding.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    run, console = load(folder), Console()
    request = replace(request, members=chosen(run, members))

    def tell(text: str) -> None:
        console.print(text, highlight=False)

    try:
        with progress("loading the model") as show:

            def on_progress(now: Progress) -> None:
                show(now.done, now.total, _line(now))

            found = evaluate(run, request, tell=tell, on_progress=on_progress)
    except KeyboardInterrupt:
        tell("Interrupted. The same command goes on where this one stopped.")
        return Ended(INTERRUPTED, interrupted=True, run=run.path)
    print_evaluation(run, found, console, request.members)
    table, asked = found.table, request.members
    shown = table if asked is None else table[table["member"].isin(asked)]
    return Ended(
        0,
        run=run.path,
        settings=found.settings,
        members=[{**row, "name": _name(run, row)} for row in shown.to_dict("records")],
    )


def chosen(run: Run, text: str | None) -> list[int] | None:
    """The ids that `--members` says: all, pareto, or ids and ranges; None if it says nothing.

    Raises:
        UserError: none of these, or no member is Pareto-best.
    """
    if text is None:
        return None
    if text == "all":
        return list(run.configurations)
    if text == "pareto":
        table = run.members
        found = list(table.index[table["pareto"]]) if "pareto" in table else []
        if not found:
            raise UserError(
                "Nobody knows which members are Pareto-best before the run is finished.",
                where=str(run.path),
                next_step="--members all, or their ids",
            )
        return [int(member) for member in found]
    try:
        return sorted({member for part in text.split(",") for member in _ids(part)})
    except ValueError:
        raise UserError(
            "Which members?",
            where="--members",
            found=repr(text),
            allowed="all, pareto, or ids such as 3,8-12",
        ) from None


def _ids(part: str) -> range:
    first, to, last = part.partition("-")
    found = range(int(first), int(last if to else first) + 1)
    if not found:
        raise ValueError("from the last to the first")
    return found


def _line(now: Progress) -> str:
    share = 100 * now.done / now.total
    seconds = remaining(now.done - now.before, now.total - now.before, now.seconds)
    return f"{share:.0f}% evaluated{left(seconds)}"


def print_evaluation(
    run: Run, found: Evaluation, console: Console, asked: Sequence[int] | None = None
) -> None:
    """Per hook: members from the sparsest on, then what brackets them.

    Args:
        asked: the members to show; if None or all of the run, those that are Pareto-best.
    """
    for hook, known in found.references.items():
        table = found.table[found.table["hook"] == hook]
        whole = table[table["features"] == "all"]
        shown, words = _shown(run, whole, asked)
        if shown.empty:
            continue
        members = "1 member" if len(whole) == 1 else f"{len(whole)} members"
        title = f"{hook}: {members} evaluated{words}"
        rows = table[table["member"].isin(shown["member"])]
        order = shown.sort_values("l0")["member"].tolist()
        rows = rows.sort_values("member", key=lambda ids: ids.map(order.index), kind="stable")
        console.print(_rich(title, rows, run))
        console.print(_brackets(known), highlight=False)


def _shown(run: Run, whole: pd.DataFrame, asked: Sequence[int] | None) -> tuple[pd.DataFrame, str]:
    """Which of the evaluated members are printed, and what is said of the choice."""
    if asked is not None and len(asked) < len(run.configurations):
        named = whole[whole["member"].isin(asked)]
        return named, f", {len(named)} of them shown" if len(named) < len(whole) else ""
    best = run.members.index[run.members["pareto"]] if "pareto" in run.members else ()
    frontier = whole[whole["member"].isin(best)]
    if len(frontier) in (0, len(whole)):
        return whole, ""
    return frontier, f", the {len(frontier)} Pareto-best of them"


def _brackets(known: dict[str, float]) -> str:
    text = (
        f"cross-entropy: clean {known['ce_clean']:.4f}, mean row {known['ce_mean']:.4f}, "
        f"zeros {known['ce_zero']:.4f} nats per token"
    )
    if "ce_recovered_identity" in known:
        text += (
            f"\nCE recovered: identity dictionary {known['ce_recovered_identity']:.4f}, "
            f"zero dictionary {known['ce_recovered_nothing']:.4f}"
        )
    return text


def _rich(title: str, table: pd.DataFrame, run: Run) -> Table:
    subsets = table["features"].nunique() > 1
    shown = Table(title=title, title_justify="left", header_style="bold", pad_edge=False, box=None)
    shown.add_column("id", justify="right")
    shown.add_column("member", overflow="fold")
    if subsets:
        shown.add_column("features")
        shown.add_column("kept", justify="right")
    for name in ("L0", "FVU", "CE", "recovered", "KL"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in table.to_dict("records"):
        shown.add_row(*_cells(row, run, subsets))
    return shown


def _name(run: Run, row: dict[Any, Any]) -> str:
    return run.configurations[int(row["member"])].name


def _cells(row: dict[Any, Any], run: Run, subsets: bool) -> list[str]:
    member = int(row["member"])
    cells = [str(member), _name(run, row)]
    if subsets:
        cells += [row["features"], str(row["kept"])]
    cells += [f"{row['l0']:.1f}", f"{row['fvu']:.4f}", f"{row['ce']:.4f}"]
    return [*cells, f"{row['ce_recovered']:.4f}", f"{row['kl']:.4f}"]
