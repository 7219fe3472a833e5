"""A run that is on the disk, for analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from ensemble_sae.data.truth import Truth, read_truth
from ensemble_sae.errors import CorruptFile, UserError, nearest
from ensemble_sae.files import open_tensors
from ensemble_sae.run.checkpoint import Checkpoint, Checkpoints
from ensemble_sae.run.evaluation import Evaluation
from ensemble_sae.run.layout import Layout, read_versioned
from ensemble_sae.run.sae import Sae
from ensemble_sae.run.units import member_units
from ensemble_sae.signatures import BUILTIN, Tensors
from ensemble_sae.signatures.limits import PENALTIES
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.sweep import Member, as_rows

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure


def load(path: str | Path, signatures: Mapping[str, type[Any]] | None = None) -> Run:
    """Open a run's folder. Reads JSON now, tensors when they are asked for; unpickles nothing.

    Args:
        path: the folder, e.g. `runs/default`.
        signatures: the classes of members trained with signatures of your own, by the name that
            the sweep gave them; a run's folder never makes this function import anything.

    Raises:
        UserError: no run there. CorruptFile: a file of it is damaged or of a newer schema.
    """
    return Run(path, signatures or {})


class Run:
    """The members of a sweep and what became of them.

    `run.members` is a DataFrame with one row per member; `run.sae(id)` loads one of them.
    """

    def __init__(self, path: str | Path, signatures: Mapping[str, type[Any]]) -> None:
        self._layout = Layout(path)
        if not self._layout.exists():
            raise UserError(
                "There is no run in this folder.",
                where=str(Path(path)),
                found="a folder without sweep.json" if Path(path).is_dir() else "no such folder",
                next_step="python -m ensemble_sae.big_sweep --run FOLDER",
            )
        self.path = self._layout.folder
        self.sweep = read_versioned(self._layout.sweep)
        self.status = read_versioned(self._layout.status)
        self._signatures = {**BUILTIN, **signatures}
        self._entries = self._read_entries()
        self._members = {entry.id: entry.member() for entry in self._entries}
        self._table = self._make_table()

    @property
    def members(self) -> pd.DataFrame:
        """One row per member, indexed by id: configuration, status and held-out metrics."""
        return self._table

    @property
    def configurations(self) -> dict[int, Member]:
        """What each member is, by id."""
        return dict(self._members)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The complete checkpoints, oldest first."""
        return Checkpoints(self._layout.checkpoints).all()

    @property
    def metrics(self) -> pd.DataFrame:
        """Training metrics over time: one row per member and chunk."""
        import pandas as pd

        from ensemble_sae.run.metrics import read_rows

        path = self._layout.metrics
        return pd.DataFrame(read_rows(path) if path.is_file() else [])

    def sae(
        self,
        member: int,
        *,
        checkpoint: Checkpoint | None = None,
        device: str = "cpu",
        averaged: bool = True,
    ) -> Sae:
        """Load one member, by id, from the latest checkpoint or a given one.

        Args:
            averaged: the parameters that are evaluated, which are averages where the member has
                an `ema`; False for those that are trained.

        Raises:
            UserError: no such member. CorruptFile: its file is damaged.
        """
        if member not in self._members:
            raise UserError(
                "There is no such member.",
                where=str(self.path),
                found=repr(member),
                allowed=f"0 to {max(self._members)}",
            )
        checkpoint = checkpoint or self._latest()
        config = self._members[member]
        signature = self._signature(config)
        buffers = _as_evaluated(checkpoint, member, device)
        if averaged and config.dynamics.get("ema"):
            params = _averages(checkpoint, config, signature, buffers, device)
        else:
            params = checkpoint.member(member, "params/", device)
        if cut := optional(signature, "cut"):  # what lies beyond its own features is padding
            params, buffers = cut(params, buffers, config.n_dict)
        units = member_units(config, self.sweep.get("units"), self._layout)
        return Sae(config, signature, params, buffers, *units)

    def select(self, **conditions: Any) -> list[Sae]:
        """Load all members whose columns equal the conditions (a list means any of its values).

        `run.select(signature="tied", dict_ratio=4)`
        """
        table = self._table
        for column, wanted in conditions.items():
            if column not in table.columns:
                raise UserError(
                    f"Members have no column {column!r}.", allowed=nearest(column, table.columns)
                )
            table = table[table[column].isin(wanted if isinstance(wanted, list) else [wanted])]
        return [self.sae(int(member)) for member in table.index]

    def truth(self, hook: str) -> Truth | None:
        """The features that the rows of a hook were made of; None where nobody knows them.

        Raises:
            CorruptFile: their file is damaged. UserError: it is missing.
        """
        store = self.sweep["stores"].get(hook)
        if store is None or hook not in self.sweep.get("known", ()):
            return None
        return read_truth(self._layout.truth / f"{Path(store).name}.safetensors")

    @property
    def evaluation(self) -> Evaluation:
        """What `python -m ensemble_sae.evaluate` found.

        Raises:
            UserError: it was not run yet. CorruptFile: its table is damaged.
        """
        return Evaluation(self._layout.evaluation)

    def firing(self, member: int) -> Tensor | None:
        """Held-out rows on which each feature of a member was active, int64 `[n]`, at the end of
        the training; None before it, and for a signature without a code.
        """
        for path in sorted(self._layout.features.glob("*.safetensors")):
            file = open_tensors(path)
            members = file.get_tensor("members")
            if (place := (members == member).nonzero()).numel():
                counts: Tensor = file.get_slice("firing")[int(place[0, 0])]
                return counts[: self._members[member].n_dict]
        return None

    def plot_pareto(self, x: str = "l0", y: str = "fvu", colour: str | None = None) -> Figure:
        """A figure of all members and their frontier; hover for a member's configuration.

        It shows itself in notebooks; elsewhere `.show()` or `.write_html(path)`. A signature has
        its symbol, each hook a frontier of its own.

        Args:
            x, y: columns of `members`, or of what an evaluation found: "ce_recovered", "ce",
                "kl", "perplexity".
            colour: another column; by default the ratio, if members differ in it, or else `l1`.

        Raises:
            UserError: no such column, the run is not finished, or not evaluated.
        """
        from ensemble_sae.pages import pareto
        from ensemble_sae.run.axes import axes
        from ensemble_sae.run.cards import measured

        table = measured(self, x, y, colour)
        return pareto.plot(table, x=x, y=y, colour=colour, varied=axes(self._table))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self._members)} members, {self.status.get('status')})"

    def _repr_html_(self) -> str:
        from ensemble_sae.run.cards import run_card

        return run_card(self)

    def _latest(self) -> Checkpoint:
        found = self.checkpoints
        if not found:
            raise UserError(
                "This run has no checkpoint yet.",
                where=str(self.path),
                next_step=f"python -m ensemble_sae.big_sweep --run {self.path} --resume",
            )
        return found[-1]

    def _signature(self, config: Member) -> type[Any]:
        if config.signature not in self._signatures:
            raise UserError(
                "This member was trained with a signature of your own.",
                where=f"member {config.id}",
                found=config.signature,
                next_step=f'load(path, signatures={{"{config.signature}": YourClass}})',
            )
        return self._signatures[config.signature]

    def _read_entries(self) -> list[_Entry]:
        entries = read_versioned(self._layout.members).get("members")
        try:
            found = TypeAdapter(_Entries).validate_python(entries)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(["members", *map(str, problem["loc"])])
            raise CorruptFile(
                "The list of members is damaged.",
                where=f"{self._layout.members}: {place}",
                found=repr(problem["input"])[:80],
                allowed=problem["msg"].removeprefix("Input should be "),
            ) from None
        return sorted(found, key=lambda entry: entry.id)

    def _make_table(self) -> pd.DataFrame:
        import pandas as pd

        if not self._layout.table.is_file():
            return pd.DataFrame(as_rows(self._entries)).set_index("id")
        try:
            table = pd.read_parquet(self._layout.table).set_index("id")
        except Exception as error:  # pyarrow has many ways to say that bytes make no sense
            raise CorruptFile(
                "The table of members is damaged.",
                where=str(self._layout.table),
                found=str(error)[:200],
                next_step=f"remove it: {self._layout.members.name} and the checkpoints remain",
            ) from None
        if set(table.index) != set(self._members):
            raise CorruptFile(
                "The table of members is damaged.",
                where=f"{self._layout.table}: id",
                found=f"{len(table)} members",
                allowed=f"the {len(self._members)} of {self._layout.members.name}",
            )
        return table


def _as_evaluated(checkpoint: Checkpoint, member: int, device: str) -> Tensors:
    """A member's buffers with its penalty as the last step had it: some codes depend on it."""
    buffers = checkpoint.member(member, "buffers/", device)
    factor = checkpoint.member(member, "penalty", device).get("")
    moved = {n: buffers[n] * factor for n in PENALTIES if n in buffers and factor is not None}
    return buffers | moved


def _averages(
    checkpoint: Checkpoint, config: Member, signature: type[Any], buffers: Tensors, device: str
) -> Tensors:
    """A member's averaged params, back inside their constraints."""
    params = checkpoint.member(config.id, "mechanisms/average/", device)
    if not params:
        raise CorruptFile(
            "A checkpoint lacks the averaged parameters of a member.",
            where=f"{checkpoint.folder}: member {config.id}",
            next_step=f"run.sae({config.id}, averaged=False)",
        )
    project = optional(signature, "project")
    return params if project is None else project(params, buffers)


@dataclass(frozen=True)
class _Entry(Member):
    """A member as `members.json` has it."""

    group: str
    status: str

    def member(self) -> Member:
        return Member(**{name: getattr(self, name) for name in Member.__dataclass_fields__})


_Entries = Annotated[list[_Entry], Field(min_length=1)]
