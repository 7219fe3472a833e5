"""Members: one configuration each, checked, named, and put into groups of one shape."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from inspect import Parameter
from typing import Any

from ensemble_sae.errors import UserError, nearest
from ensemble_sae.signatures import hyperparameters, resolve
from ensemble_sae.signatures.limits import LIMITS, POSITIVE, Limit
from ensemble_sae.sweep.grid import combinations
from ensemble_sae.sweep.schema import Sweep

MOST_FEATURES = 2**31
COMMON = ("signature", "hook", "dict_ratio", "n_dict", "lr", "grad_clip", "seed")


@dataclass(frozen=True)
class Member:
    """One SAE of a sweep: what it is and how it is trained."""

    id: int
    name: str
    signature: str
    hook: str
    d_activation: int
    n_dict: int
    dict_ratio: float
    lr: float
    grad_clip: float | None
    seed: int
    hyperparameters: dict[str, float]

    def as_row(self) -> dict[str, Any]:
        """One flat row for tables: the hyper-parameters become columns."""
        row = asdict(self)
        return row | row.pop("hyperparameters")

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Member:
        """The inverse of `dataclasses.asdict`."""
        return Member(**row)


@dataclass(frozen=True)
class Group:
    """Members of one hook, one signature and one shape: they can be stacked."""

    name: str
    signature: str
    hook: str
    d_activation: int
    n_dict: int
    members: tuple[Member, ...]


def expand(sweep: Sweep, widths: Mapping[str, int], where: str = "sweep") -> list[Member]:
    """All members of a sweep, in order: the grids', then the explicit ones.

    Args:
        widths: hook -> d_activation, of every hook that has a store.
        where: what to call the sweep in messages (its file).

    Raises:
        UserError: names file, key, value, and what is allowed.
    """
    wanted: list[tuple[dict[str, Any], str]] = []
    for index, grid in enumerate(sweep.grid):
        place = f"{where}: grid" if len(sweep.grid) == 1 else f"{where}: grid[{index}]"
        wanted += [(choice, place) for choice in combinations(grid, place)]
    wanted += [(m, f"{where}: members[{i}]") for i, m in enumerate(sweep.members)]
    drafts = [_draft(values, sweep, widths, place) for values, place in wanted]
    named = _with_names(drafts)
    _refuse_twins(named, where)
    return named


def groups_of(members: list[Member], places: Mapping[int, Hashable] | None = None) -> list[Group]:
    """Members by (hook, signature, n_dict), in order of first appearance.

    Args:
        places: member id -> where in the schedule it is; those at different places stay apart.
    """
    several_hooks = len({m.hook for m in members}) > 1
    found: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        place = places[member.id] if places else None
        found.setdefault((member.hook, member.signature, member.n_dict, place), []).append(member)
    groups, taken = [], set()
    for (hook, signature, n_dict, _), same in found.items():
        name = _group_name(signature, n_dict, hook if several_hooks else None)
        name = name if name not in taken else f"{name}-m{same[0].id}"
        taken.add(name)
        groups.append(Group(name, signature, hook, same[0].d_activation, n_dict, tuple(same)))
    return groups


def _group_name(signature: str, n_dict: int, hook: str | None) -> str:
    words = [signature.rpartition(":")[2], f"n{n_dict}", *([hook] if hook else [])]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(words))


def _draft(
    values: Mapping[str, Any], sweep: Sweep, widths: Mapping[str, int], where: str
) -> Member:
    if "signature" not in values:
        raise UserError("A member needs a signature.", where=where, allowed="signature = [...]")
    try:
        signature = resolve(str(values["signature"]))
    except UserError as error:
        raise UserError(
            error.what,
            where=f"{where}.signature",
            found=error.found,
            allowed=error.allowed,
            next_step=error.next_step,
        ) from None
    defaults = hyperparameters(signature)
    _refuse_unknown(values, defaults, where)
    hook = _hook(values, sweep, widths, where)
    d = widths[hook]
    n_dict = _n_dict(values, d, where)
    lr = _number(values.get("lr", sweep.train.lr), POSITIVE, f"{where}.lr")
    clip = values.get("grad_clip", sweep.train.grad_clip)
    return Member(
        id=0,
        name="",
        signature=str(values["signature"]),
        hook=hook,
        d_activation=d,
        n_dict=n_dict,
        dict_ratio=n_dict / d,
        lr=lr,
        grad_clip=None if clip is None else _number(clip, POSITIVE, f"{where}.grad_clip"),
        seed=_seed(values.get("seed", 0), f"{where}.seed"),
        hyperparameters=_hyperparameters(values, defaults, where),
    )


def _refuse_unknown(values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    for key in values:
        if key not in COMMON and key not in defaults:
            raise UserError(
                f"The signature {values['signature']!r} has no {key!r}.",
                where=f"{where}.{key}",
                found=repr(values[key]),
                allowed=nearest(key, [*COMMON, *defaults]),
                next_step="a signature without this axis goes into a [[grid]] of its own",
            )


def _hook(values: Mapping[str, Any], sweep: Sweep, widths: Mapping[str, int], where: str) -> str:
    hook = values.get("hook", sweep.activations.hook)
    if hook is None and len(widths) == 1:
        return next(iter(widths))
    if hook is None:
        raise UserError(
            "There are stores of several hook points: say which.",
            where=f"{where}.hook",
            allowed=", ".join(widths),
            next_step='hook = [...] in [grid], or hook = "..." in [activations]',
        )
    if not isinstance(hook, str) or hook not in widths:
        raise UserError(
            "There is no store of this hook point.",
            where=f"{where}.hook",
            found=repr(hook),
            allowed=nearest(str(hook), widths),
        )
    return hook


def _n_dict(values: Mapping[str, Any], d_activation: int, where: str) -> int:
    if ("n_dict" in values) == ("dict_ratio" in values):
        raise UserError(
            "The dictionary size is given once.",
            where=where,
            found="both n_dict and dict_ratio" if "n_dict" in values else "neither",
            allowed="dict_ratio = [...] (times d_activation), or n_dict = [...] (features)",
        )
    if "n_dict" in values:
        n_dict = values["n_dict"]
        whole = isinstance(n_dict, int) and not isinstance(n_dict, bool)
        if not whole or not 1 <= n_dict <= MOST_FEATURES:
            raise UserError(
                "A value is not allowed.",
                where=f"{where}.n_dict",
                found=repr(n_dict)[:80],
                allowed=f"a whole number from 1 to {MOST_FEATURES:,}",
            )
        return n_dict
    ratio = _number(values["dict_ratio"], POSITIVE, f"{where}.dict_ratio")
    n_dict = min(ratio * d_activation, 2.0 * MOST_FEATURES)  # an inf cannot be rounded
    if not 1 <= round(n_dict) <= MOST_FEATURES:
        raise UserError(
            f"This ratio gives {ratio * d_activation:g} features at d_activation {d_activation}.",
            where=f"{where}.dict_ratio",
            found=f"{ratio:g}",
            allowed=f"{1 / d_activation:g} to {MOST_FEATURES / d_activation:g}",
        )
    return round(n_dict)


def _hyperparameters(
    values: Mapping[str, Any], defaults: Mapping[str, Any], where: str
) -> dict[str, float]:
    chosen = {}
    for name, default in defaults.items():
        value = values.get(name, default)
        if value is Parameter.empty:
            raise UserError(f"The signature {values['signature']!r} needs {name!r}.", where=where)
        chosen[name] = _number(value, LIMITS.get(name), f"{where}.{name}")
    return chosen


def _number(value: Any, limit: Limit | None, where: str) -> float:
    words = limit.words if limit else "a finite number"
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not (limit.allows(number) if limit else math.isfinite(number)):
        raise UserError(
            "A value is not allowed.", where=where, found=repr(value)[:80], allowed=words
        )
    return number


def _seed(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(
            "A value is not allowed.", where=where, found=repr(value), allowed="a whole number >= 0"
        )
    return value


SHORT = {"bias_decay": "bd"}  # in names; every other hyper-parameter keeps its own


def _with_names(drafts: list[Member]) -> list[Member]:
    """Number the members and name each by signature, ratio, and what differs in the sweep."""
    varies = {
        field: len({getattr(m, field) for m in drafts}) > 1
        for field in ("hook", "lr", "grad_clip", "seed")
    }
    members = []
    for index, draft in enumerate(drafts):
        words = [draft.signature.rpartition(":")[2]]
        words += [_named(name, value) for name, value in draft.hyperparameters.items()]
        words.insert(2, f"r={draft.dict_ratio:g}")
        words += [f"{f}={getattr(draft, f)}" for f, different in varies.items() if different]
        values = {**asdict(draft), "id": index, "name": " ".join(words)}
        members.append(Member(**values))
    times = Counter(member.name for member in members)  # values closer than a name has digits
    return [m if times[m.name] == 1 else replace(m, name=f"{m.name} #{m.id}") for m in members]


def _named(name: str, value: float) -> str:
    text = f"{value:g}"
    if name == "l1" and value:
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{SHORT.get(name, name)}={text}"


def _refuse_twins(members: list[Member], where: str) -> None:
    seen: dict[tuple[Any, ...], Member] = {}
    for member in members:
        row = member.as_row()
        identity = tuple(value for key, value in row.items() if key not in ("id", "name"))
        if identity in seen:
            raise UserError(
                f"Members {seen[identity].id} and {member.id} are the same.",
                where=where,
                found=member.name,
                next_step="remove one, or give them different seeds (seed = [0, 1])",
            )
        seen[identity] = member
