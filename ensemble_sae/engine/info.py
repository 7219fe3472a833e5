"""What a run is: how far it came, what is in it, how good its members are, what is next."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemble_sae.data.disk import human_bytes
from ensemble_sae.engine.installation import of_installation, show_installation
from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import read_json
from ensemble_sae.inspection.files import kept
from ensemble_sae.run import Layout, Run, load
from ensemble_sae.run.layout import Busy
from ensemble_sae.terminal import Ended, spelled

if TYPE_CHECKING:
    import pandas as pd

L0 = (5, 10, 20, 50, 100, 200)  # the best member with at most so many active features


def execute(folder: Path | None, data_dir: Path | None) -> int:
    """Print what is installed, or what a run is; returns the exit code.

    Raises:
        UserError: there is no run in the folder.
    """
    console = Console()
    if folder is None:
        found = of_installation(data_dir)
        show_installation(found, console)
    else:
        found = of_run(load(folder))
        show_run(found, console)
    return Ended(0, **found)


def of_run(run: Run) -> dict[str, Any]:
    """Status, members, checkpoints, sizes, held-out bests, what was done with it and what was not,
    as JSON has it. Sizes are in bytes, times in seconds, `ended` since 1970.
    """
    facts, table = run.status, run.members
    status, best = _status(run), _best(table)
    damaged: list[str] = []
    done = _done(run, damaged)
    return {
        "run": run.path,
        "status": status,
        "sweep": run.sweep["sweep"].get("name"),
        "stores": run.sweep["stores"],
        "seconds": facts.get("seconds"),
        "ended": facts.get("ended"),
        "hardware": facts.get("hardware"),
        "devices": facts.get("devices"),
        "versions": facts.get("versions"),
        "members": _members(table),
        "checkpoints": [{"step": c.step, "path": c.folder} for c in run.checkpoints],
        "bytes": _sizes(run.path),
        "best": best,
        **done,
        "damaged": damaged,
        "next": _next(run, status, done, best),
    }


def _status(run: Run) -> str:
    """As `run.json` has it; `stopped` where it says `running` and nobody does."""
    said = str(run.status.get("status"))
    if said != "running":
        return said
    try:
        with Layout(run.path).locked():
            return "stopped"
    except (Busy, OSError):  # also where only its owner may lock it
        return said


def _members(table: pd.DataFrame) -> dict[str, Any]:
    frozen = table.index[table["status"].str.startswith("frozen")]
    words = table["flags"].str.split(", ").explode() if "flags" in table else None
    return {
        "count": len(table),
        "signatures": table["signature"].value_counts().to_dict(),
        "hooks": table["hook"].value_counts().to_dict(),
        "n_dict": sorted(int(n) for n in table["n_dict"].unique()),
        "status": _counts(table["status"]),
        "frozen": [int(member) for member in frozen],
        "flags": {} if words is None else words[words != ""].value_counts().to_dict(),
        "pareto": int(table["pareto"].sum()) if "pareto" in table else None,
    }


def _counts(status: pd.Series) -> dict[str, int]:
    """How many members there are of every status, without the step that some name."""
    words = status.str.partition(" at ")[0]
    return {str(word): int(count) for word, count in words.value_counts().items()}


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every entry of the folder, the largest first."""
    found = {entry.name: _bytes(entry) for entry in folder.iterdir()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _bytes(entry: Path) -> int:
    """Of a file, or of all below a folder; what is gone in the meantime is nothing."""
    below = (Path(folder) / name for folder, _, names in os.walk(entry) for name in names)
    total = 0
    for path in [entry] if entry.is_file() else below:
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _best(table: pd.DataFrame) -> list[dict[str, Any]]:
    """By hook and by L0: the member with the lowest FVU on held-out rows that uses no more."""
    if "pareto" not in table:
        return []
    found: list[dict[str, Any]] = []
    for hook, members in table[table["pareto"]].groupby("hook"):
        known: set[int] = set()
        for most in (*L0, None):
            within = members if most is None else members[members["l0"] <= most]
            if within.empty or (best := _lowest(within)) in known:
                continue
            known.add(best)
            row: Any = members.loc[best]
            about = {"id": best, **{key: row[key] for key in ("name", "l0", "fvu")}}
            found.append({"hook": hook, "l0_at_most": most, **about})
    return found


def _lowest(members: pd.DataFrame) -> int:
    lowest: Any = members["fvu"].idxmin()
    return int(lowest)


def _done(run: Run, damaged: list[str]) -> dict[str, Any]:
    """What other commands found: how many members were evaluated; who was looked at. What cannot
    be read is told in `damaged`.
    """
    evaluated = 0
    try:
        evaluated = len(run.evaluation.members)
    except CorruptFile as error:
        damaged.append(f"{error.what} {error.where}")
    except UserError:  # not evaluated yet
        pass
    explained = run.path / "interpreted" / "by_rules.json"
    report = run.path / "report" / "index.html"
    return {
        "evaluated": evaluated,
        "inspected": sorted(kept(run, damaged)),
        "interpreted": list(read_json(explained)) if explained.is_file() else [],
        "report": report if report.is_file() else None,
    }


def _next(run: Run, status: str, done: dict[str, Any], best: list[dict[str, Any]]) -> list[str]:
    """Commands that have not been called yet, as they are typed."""
    folder = str(run.path)
    if status in ("interrupted", "failed", "stopped"):
        return [spelled("big_sweep", "--run", folder, "--resume")]
    if status == "running":
        return []
    found = [] if done["report"] else [spelled("report", folder)]
    if not run.sweep.get("known"):  # rows of a language model, as far as anybody knows
        found += [] if done["evaluated"] else [spelled("evaluate", folder)]
        found += [] if done["interpreted"] else [spelled("interpret", folder)]
    if best:
        member = str(best[len(best) // 2]["id"])
        words = (
            folder,
            "--member",
            member,
            "--to",
            "saelens",
            "--out",
            f"exported/saelens-{member}",
        )
        found.append(spelled("export", *words))
    return found


def show_run(found: dict[str, Any], console: Console) -> None:
    """Print what `of_run` found."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    say(f"{found['run']}: {found['status']}{_when(found)}")
    for name, words in _lines(found).items():
        if words:
            say(f"  {name + ':':<13}{words}")
    if found["best"]:
        console.print(_best_table(found["best"]))
    if found["next"]:
        say("Next:")
        for command in found["next"]:
            say(f"  {command}")


def _when(found: dict[str, Any]) -> str:
    parts = []
    if found["ended"]:
        parts.append(f"{datetime.fromtimestamp(found['ended']):%Y-%m-%d %H:%M}")
    if found["seconds"]:
        parts.append(f"after {found['seconds'] / 60:.1f} minutes")
    if found["hardware"]:
        parts.append(f"on {found['hardware']}")
    return f" ({' '.join(parts)})" if parts else ""


def _lines(found: dict[str, Any]) -> dict[str, str]:
    members, sizes = found["members"], found["bytes"]
    checkpoints = ", ".join(f"step {checkpoint['step']:,}" for checkpoint in found["checkpoints"])
    kinds = _listed(members["signatures"])
    frozen = len(members["frozen"])
    largest = [f"{name} {human_bytes(size)}" for name, size in list(sizes.items())[:4] if size]
    inspected = ", ".join(map(str, found["inspected"]))
    return {
        "sweep": str(found["sweep"] or ""),
        "rows": ", ".join(map(str, found["stores"].values())),
        "members": f"{members['count']}: {kinds}; {_sizes_of(members['n_dict'])} features",
        "status": _listed(members["status"]),
        "flags": _listed(members["flags"]),
        "frozen": f"members {', '.join(map(str, members['frozen'][:20]))}" if frozen else "",
        "checkpoints": checkpoints or "none yet",
        "on disk": f"{human_bytes(sum(sizes.values()))}: {', '.join(largest)}",
        "evaluated": f"{found['evaluated']} of {members['count']}" if found["evaluated"] else "",
        "inspected": f"members {inspected}" if inspected else "",
        "interpreted": ", ".join(found["interpreted"]),
        "report": str(found["report"] or ""),
        "damaged": "; ".join(found["damaged"]),
    }


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def _sizes_of(sizes: list[int]) -> str:
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"


def _best_table(best: list[dict[str, Any]]) -> Table:
    several = len({row["hook"] for row in best}) > 1
    heads = ["L0 up to", *(["hook"] if several else []), "id", "member", "L0", "FVU"]
    title = "Lowest FVU on held-out rows:"
    shown = Table(title=title, title_justify="left", title_style="", pad_edge=False, box=None)
    for head in heads:
        words = head in ("hook", "member")
        shown.add_column(head, justify="left" if words else "right", no_wrap=not words)
    for row in best:
        cells = [str(row["l0_at_most"] or "any"), *([row["hook"]] if several else [])]
        cells += [str(row["id"]), escape(row["name"]), f"{row['l0']:.1f}", f"{row['fvu']:.4f}"]
        shown.add_row(*cells)
    return shown
