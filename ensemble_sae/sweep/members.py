"""Members: one configuration each, checked and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ensemble_sae.config.dynamics import DYNAMICS
from ensemble_sae.config.start import Start
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.signatures import hyperparameters, resolve
from ensemble_sae.signatures.limits import POSITIVE
from ensemble_sae.sweep import values as checked
from ensemble_sae.sweep.grid import combinations
from ensemble_sae.sweep.hook import member_hook, refuse_another_kind
from ensemble_sae.sweep.member import Member
from ensemble_sae.sweep.names import with_names
from ensemble_sae.sweep.schema import Sweep

COMMON = ("signature", "hook", "dict_ratio", "n_dict", "seed", "init", *sorted(DYNAMICS))


def expand(sweep: Sweep, widths: Mapping[str, int], where: str = "sweep") -> list[Member]:
    """All members of a sweep, in order: the grids', then the explicit ones.

    Args:
        widths: hook point -> d_activation, of every point that has a store.
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
    named = with_names(drafts)
    _refuse_twins(named, where)
    return named


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
    hook = member_hook(values.get("hook", sweep.activations.hook), widths, f"{where}.hook")
    refuse_another_kind(hook, str(values["signature"]), signature, f"{where}.hook")
    d = sum(widths[point] for point in hook.inputs)
    n_dict = checked.features(values, d, where)
    own = checked.own_values(signature, values, defaults, (d, n_dict), where)
    lr = checked.number(values.get("lr", sweep.train.lr), POSITIVE, f"{where}.lr")
    clip = values.get("grad_clip", sweep.train.grad_clip)
    clip = None if clip is None else checked.number(clip, POSITIVE, f"{where}.grad_clip")
    over_time = checked.dynamics_of(values, sweep.train, own, n_dict, where)
    return Member(
        id=0,
        name="",
        signature=str(values["signature"]),
        hook=hook.name,
        d_activation=d,
        widths=tuple(widths[point] for point in hook.points),
        n_dict=n_dict,
        dict_ratio=n_dict / d,
        lr=lr,
        grad_clip=clip,
        seed=checked.seed_of(values.get("seed", 0), f"{where}.seed"),
        hyperparameters=own,
        init=asdict(Start.parse(values.get("init", sweep.train.init), f"{where}.init")),
        dynamics=over_time,
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
