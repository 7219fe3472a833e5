"""One SAE of a sweep, and the members that can be stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.config.start import Start

Value = float | int | bool | str


@dataclass(frozen=True)
class Member:
    """What one SAE is and how it is trained.

    Attributes:
        d_activation: values that are read: of all of the hook's inputs.
        widths: of the hook's points, in order; () in runs of older versions.
        hyperparameters: the signature's, options among them.
        init: what its directions start from: a kind, and the share of rare-feature vectors.
        dynamics: schedules, set-point, resampling and the like: the keys of `config.dynamics`.
    """

    id: int
    name: str
    signature: str
    hook: str
    d_activation: int
    widths: tuple[int, ...] = field(default=(), kw_only=True)
    n_dict: int
    dict_ratio: float
    lr: float
    grad_clip: float | None
    seed: int
    hyperparameters: dict[str, Value]
    init: dict[str, Any] = field(default_factory=lambda: asdict(Start()), kw_only=True)
    dynamics: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def d_target(self) -> int:
        """Values of the hook's targets; 0 for a member that reconstructs what it reads."""
        return sum(self.widths) - self.d_activation if self.widths else 0

    def as_row(self) -> dict[str, Any]:
        """One flat row for tables: hyper-parameters and dynamics become columns.

        Without the widths of single hook points, which follow from the hook.
        """
        row = asdict(self)
        del row["widths"]
        start = Start(**row.pop("init"))
        own, over_time = row.pop("hyperparameters"), row.pop("dynamics")
        return row | own | {"init": start.text} | over_time

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Member:
        """The inverse of `dataclasses.asdict`, also through JSON, which has no tuples."""
        return Member(**{**row, "widths": tuple(row.get("widths", ()))})


def as_rows(members: Sequence[Member]) -> list[dict[str, Any]]:
    """One flat row per member, for tables; without dynamics that nobody has changed."""
    rows = [member.as_row() for member in members]
    known = {name: field.default for name, field in Dynamics.model_fields.items()}
    never = [
        n for n in known if all(n in m.dynamics and m.dynamics[n] == known[n] for m in members)
    ]
    return [{key: value for key, value in row.items() if key not in never} for row in rows]


@dataclass(frozen=True)
class Group:
    """Members of one hook, one signature and one shape: they can be stacked.

    `n_dict` is the stack's: members of a signature that pads may have fewer features of their own.
    """

    name: str
    signature: str
    hook: str
    d_activation: int
    n_dict: int
    members: tuple[Member, ...]
