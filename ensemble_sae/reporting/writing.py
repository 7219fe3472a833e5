"""The report of a run: everything that is known of it, gathered and written as one page."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ensemble_sae.errors import UserError
from ensemble_sae.files import write_atomically
from ensemble_sae.lm.origin import origin
from ensemble_sae.reporting import curves, structure
from ensemble_sae.reporting.browser import browsed
from ensemble_sae.reporting.choosing import along_the_frontier
from ensemble_sae.reporting.glance import glance
from ensemble_sae.reporting.looking import Looked, looked
from ensemble_sae.reporting.members import members
from ensemble_sae.reporting.page import page
from ensemble_sae.reporting.plain import columns
from ensemble_sae.run import Layout, Run

if TYPE_CHECKING:
    import pandas as pd

Tell = Callable[[str], object]
Found = TypeVar("Found")
WITHOUT_LOOKING = 6  # members whose features are followed, where nobody has looked at any


def write_report(run: Run, tell: Tell = lambda what: None) -> Path:
    """Write `report/index.html` into the run's folder, from what is known of the run now.

    One page that needs nothing else. What cannot be read or takes too long is left out, and the
    page says so.

    Args:
        tell: called with what is being done.

    Returns:
        The page.

    Raises:
        UserError: the folder cannot be written.
    """
    notes: list[str] = []
    tell("reading the members")
    chosen = looked(run, notes)
    data = _data(run, chosen, notes, tell)
    blocks = {}
    for one in chosen:
        tell(f"writing the features of member {one.member}")
        blocks[one.member] = browsed(one)
    tell("writing the page")
    return _write(Layout(run.path).report, page(data, blocks))


def _data(run: Run, chosen: list[Looked], notes: list[str], tell: Tell) -> dict[str, Any]:
    """All of the page but the features."""
    known = "fvu" in run.members and run.members["fvu"].notna().any()
    table = run.members if known else _as_trained(run, notes)
    tell("comparing dictionaries")
    near = _or_note(lambda: structure.beside(run, notes), notes)
    truth = _or_note(lambda: structure.compared(run, notes), notes)
    tell("following features")
    shown = [one.member for one in chosen] or along_the_frontier(run, WITHOUT_LOOKING)
    told = _or_note(lambda: structure.followed(run, shown, notes), notes) or {}
    found = _or_note(lambda: curves.evaluated(run), notes) or {}
    if run.status.get("status") not in ("finished", "adopted"):
        notes.insert(0, f"This run is not finished: its status is {run.status.get('status')!r}.")
    if found:
        notes += _partly(run, table)
    return {
        "name": run.path.resolve().name,
        "load": f"ensemble_sae.load({json.dumps(_shown(run.path), ensure_ascii=False)})",
        "path": shlex.quote(_shown(run.path)),
        "model": _model(run),
        "glance": glance(run, table),
        "members": members(table, _more(run, near, truth, chosen)),
        "training": curves.training(run),
        "densities": curves.densities(table),
        "neighbours": _pairs(near),
        "histories": told,
        "truth": {} if truth is None else truth.by_frequency,
        "evaluated": found,
        "features": [{"member": one.member, "features": len(one.features)} for one in chosen],
        "notes": notes,
    }


def _model(run: Run) -> str | None:
    """What commands must say of the language model: nothing where it is known; None where there is
    none, since the rows are synthetic.
    """
    try:
        origin(run)
    except UserError:
        return None if run.sweep.get("known") else " --model MODEL --dataset DATASET"
    return ""


def _as_trained(run: Run, notes: list[str]) -> pd.DataFrame:
    """The members of a run without held-out numbers: what training said of them last."""
    table, metrics = run.members.copy(), run.metrics
    if len(metrics):
        notes.append("No held-out rows were evaluated: FVU and L0 are those of the last round.")
    for name in ("fvu", "l0"):
        table[name] = float("nan")
        if name in metrics:  # a signature of one's own need not tell it
            last = metrics.sort_values("step").groupby("member")[name].last()
            table[name] = last.reindex(table.index)
    return table.assign(dead=float("nan"), pareto=False, flags="")


def _more(
    run: Run, near: pd.DataFrame | None, truth: structure.Compared | None, chosen: list[Looked]
) -> dict[str, pd.Series]:
    """Metrics beside those of the members' table, by id."""
    import pandas as pd

    found: dict[str, pd.Series] = {}
    if near is not None:
        for kind, own in near.groupby("kind"):
            found[f"mmcs_{kind}"] = own.groupby("member")["mmcs"].mean()
    if truth is not None:
        found |= {str(name): truth.table[name] for name in truth.table}
    try:
        evaluated = run.evaluation.members
        found |= {name: evaluated[name] for name in ("ce_recovered", "ce", "kl")}
    except UserError:
        pass
    scores = {
        one.member: one.rules["top_and_random"].mean() for one in chosen if one.rules is not None
    }
    if scores:
        found["score"] = pd.Series(scores)
    return found


def _partly(run: Run, table: pd.DataFrame) -> list[str]:
    """A line if not all members are evaluated in the language model."""
    known = len(run.evaluation.members)
    if known >= len(table):
        return []
    return [f"{known} of {len(table)} members are evaluated in the language model."]


def _or_note(work: Callable[[], Found], notes: list[str]) -> Found | None:
    """What `work` gives; if it cannot, why it could not is said on the page."""
    try:
        return work()
    except UserError as error:
        where = f" ({error.where})" if error.where else ""
        notes.append(f"Left out: {error.what}{where}")
        return None


def _pairs(near: pd.DataFrame | None) -> dict[str, Any]:
    if near is None:
        return {}
    return columns(near.to_dict("records"), ("member", "other", "kind", "mmcs"))  # type: ignore[arg-type]


def _shown(path: Path) -> str:
    """The run's folder as a reader would name it from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(
            "The report could not be written.",
            where=str(path),
            found=os.strerror(error.errno) if error.errno else str(error),
        ) from None
    return path
