"""What wandb is sent of a sweep, and in which form.

There is always one wandb run of the whole sweep: its configuration, the table of its members, the
frontier, the report. The members' curves are in runs of their own where opening these does not
take long beside the training, else in the sweep's: a section for each quantity, a series for each
member.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_sae.files import read_json, write_json

Row = dict[str, Any]
Init = Callable[..., Any]

ALL = "all members"
SERIES = ("loss", "mse", "fvu", "l0")
HELD_OUT = ("fvu", "l0", "dead", "pareto")
LONGEST = 128  # characters of a name that wandb takes
POINTS = 10_000  # rows of a chart that wandb draws


@dataclass(frozen=True)
class Sweep:
    """What is known of a sweep when it begins, from its folder.

    Attributes:
        config: the resolved sweep, versions, hardware.
        members: by id, one flat row each.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    members: dict[int, Row]

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """From `sweep.json`, `run.json` and `members.json`."""
        sweep, status = read_json(folder / "sweep.json"), read_json(folder / "run.json")
        shown = ("versions", "hardware", "devices", "threads")
        config = {"sweep": sweep["sweep"], "stores": sweep["stores"]}
        config |= {name: status[name] for name in shown}
        members = {m["id"]: _flat(m) for m in read_json(folder / "members.json")["members"]}
        return cls(folder.name, folder, config, members)


def _flat(member: Row) -> Row:
    nested = ("hyperparameters", "dynamics", "widths", "status")
    row = {key: value for key, value in member.items() if key not in nested}
    return row | member["hyperparameters"] | member["dynamics"]


@dataclass
class Notes:
    """`wandb.json`: what a resumed sweep must know to continue the same wandb runs.

    Attributes:
        ids: wandb's ids, by the members' names and `ALL`.
        rounds: how many were logged; those that are trained again are not logged again.
    """

    path: Path
    project: str
    ids: dict[str, str] = field(default_factory=dict)
    rounds: int = 0

    @classmethod
    def read(cls, folder: Path, project: str) -> Notes:
        """What is noted in the folder, or the notes of a new run."""
        path = folder / "wandb.json"
        known = read_json(path) if path.is_file() else {}
        known = known if "ids" in known else {"ids": known}  # all that was noted once
        return cls(path, **{"project": project} | known)

    def write(self) -> None:
        """Keep them, for a resume."""
        known = {"project": self.project, "rounds": self.rounds, "ids": self.ids}
        write_json(self.path, known)

    def logged(self, number: int) -> None:
        """A round was."""
        self.rounds = number + 1
        self.write()


def initialiser(sweep: Sweep, notes: Notes, mode: Any) -> Init:
    """`wandb.init` with what is the same for all runs of a sweep."""

    def init(name: str, run_id: str, config: dict[str, Any], job_type: str) -> Any:
        import wandb

        alone = job_type == "sweep"  # of many runs in one process, one records the machine
        return wandb.init(
            project=notes.project,
            group=sweep.name[:LONGEST],
            job_type=job_type,
            name=name,
            id=run_id,
            config=config,
            dir=sweep.folder,
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                quiet=True,
                save_code=False,
                disable_git=True,
                x_disable_stats=not alone,
            ),
        )

    return init


class Runs:
    """The wandb runs of one sweep.

    Args:
        each: members have runs of their own; a sweep that is resumed stays as it began.
    """

    def __init__(self, sweep: Sweep, notes: Notes, init: Init, each: bool) -> None:
        self._sweep = sweep
        names = distinct({id: row["name"][:LONGEST] for id, row in sweep.members.items()})
        own = names if (set(notes.ids) - {ALL} if notes.ids else each) else {}
        for key in (ALL, *own.values()):
            notes.ids.setdefault(key, secrets.token_hex(4))
        notes.write()
        self._series = {} if own else distinct({id: series_name(n) for id, n in names.items()})
        counted = sweep.config | {"members": len(sweep.members)}
        self._all = init(sweep.name[:LONGEST], notes.ids[ALL], counted, "sweep")
        self._own = {
            id: init(name, notes.ids[name], sweep.config | sweep.members[id], "member")
            for id, name in own.items()
        }
        for run in (self._all, *self._own.values()):
            run.define_metric("step")
            for name in SERIES:
                run.define_metric(f"{name}/*" if run is self._all else name, step_metric="step")

    def log(self, number: int, rows: Sequence[Row]) -> None:
        """One round's rows, against the training step."""
        together: Row = {"step": max(row["step"] for row in rows)} if rows else {}
        for row in rows:
            values = {name: row[name] for name in SERIES if row.get(name) is not None}
            if self._own:
                self._own[row["member"]].log({**values, "step": row["step"]}, step=number)
            else:
                series = self._series[row["member"]]
                together |= {f"{name}/{series}": value for name, value in values.items()}
        self._all.log(together, step=number)

    def finish(self, table: Sequence[Row], rounds: Iterable[tuple[int, Sequence[Row]]]) -> None:
        """The held-out results: tables, the frontier, each member's summary; curves together.

        Args:
            table: one row per member, None where there is no value.
            rounds: the rows of all rounds.
        """
        import wandb

        columns, data = plain(table)
        if self._series:
            columns = [*columns, "series"]
            series = [self._series[row["id"]] for row in table]
            data = [[*row, name] for row, name in zip(data, series, strict=True)]
        found = [row for row in table if row["fvu"] is not None and row["l0"] is not None]
        best = sorted((row for row in found if row["pareto"]), key=lambda row: row["l0"])
        self._all.log(
            {
                "members": wandb.Table(columns=columns, data=data),
                "pareto": _columns(best, ("id", "name", "hook", "l0", "fvu", "dead")),
                "fvu_against_l0": wandb.plot.scatter(
                    _columns(found, ("l0", "fvu", "name")), "l0", "fvu", title="FVU against L0"
                ),
                "frontier": wandb.plot.line(
                    _columns(best, ("l0", "fvu", "hook", "name")),
                    "l0",
                    "fvu",
                    stroke="hook",
                    title="Pareto frontier: FVU against L0",
                ),
                **(self._curves(rounds) if self._series else {}),
            }
        )
        self._all.summary.update({"pareto_members": len(best)})
        for row in table if self._own else ():
            held_out = {f"held_out/{name}": row[name] for name in HELD_OUT}
            self._own[row["id"]].summary.update({**held_out, "status": row["status"]})

    def _curves(self, rounds: Iterable[tuple[int, Sequence[Row]]]) -> Row:
        """All members' curves in one chart for each quantity; thinned to what wandb draws."""
        import wandb

        kept = list(rounds)
        apart = max(1, -(-len(kept) * len(self._sweep.members) // POINTS))
        rows = [row for _, some in kept[::-1][::apart][::-1] for row in some]
        charts = {}
        for name in ("fvu", "l0"):
            points: dict[int, list[tuple[int, float]]] = {}
            for row in rows:
                if row.get(name) is not None:
                    points.setdefault(row["member"], []).append((row["step"], row[name]))
            charts[f"curves_{name}"] = wandb.plot.line_series(
                xs=[[step for step, _ in line] for line in points.values()],
                ys=[[value for _, value in line] for line in points.values()],
                keys=[self._sweep.members[id]["name"] for id in points],
                title=f"{name.upper()} while training",
                xname="step",
            )
        return charts

    def report(self, page: Path) -> None:
        """The report, as an artifact of the sweep's run."""
        import wandb

        name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"report-{self._sweep.name}")[:LONGEST]
        artifact = wandb.Artifact(name, type="report")
        artifact.add_file(str(page), name=page.name)
        self._all.log_artifact(artifact)

    def close(self) -> None:
        """End all runs."""
        for run in (*self._own.values(), self._all):
            run.finish()


def series_name(name: str) -> str:
    """A member's name as wandb's rules for metrics want it: letters, digits, underscores.

    `tied l1=2.1e-3 r=0.5` is `tied_l1_2p1em3_r_0p5`: a point becomes `p`, a minus `m`. With other
    characters wandb makes sections (`/`), or does not sort, filter or find the x axis (a point).
    """
    text = re.sub(r"(?<=\d)\.(?=\d)", "p", name)
    text = re.sub(r"-(?=\d)", "m", text)
    return re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")[:LONGEST]


def distinct(names: Mapping[int, str]) -> dict[int, str]:
    """The same names; those that more than one has are followed by an id."""
    times: dict[str, int] = {}
    for name in names.values():
        times[name] = times.get(name, 0) + 1
    return {
        id: name if times[name] == 1 else f"{name[: LONGEST - 8]}_{id}"
        for id, name in names.items()
    }


def plain(table: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns and data that wandb takes: no lists, and one kind of value in a column."""
    simple = (bool, int, float, str, type(None))
    columns = [name for name in table[0] if all(isinstance(row[name], simple) for row in table)]
    mixed = {
        name
        for name in columns
        if len({_kind(row[name]) for row in table if row[name] is not None}) > 1
    }

    def shown(name: str, value: Any) -> Any:
        return str(value) if name in mixed and value is not None else value

    return columns, [[shown(name, row[name]) for name in columns] for row in table]


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _columns(rows: Sequence[Row], columns: Sequence[str]) -> Any:
    import wandb

    return wandb.Table(
        columns=list(columns), data=[[row[name] for name in columns] for row in rows]
    )
