"""Whether a sample of rows allows what members want to be fitted to, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ensemble_sae.data.hooks import Hook
from ensemble_sae.data.joined import Rows
from ensemble_sae.data.sample import sample_rows
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import Units, join_units
from ensemble_sae.dispatch.initial import initial, sample_size
from ensemble_sae.engine.stores import Sources, rows_of
from ensemble_sae.errors import UserError
from ensemble_sae.signatures import resolve
from ensemble_sae.signatures.protocol import optional
from ensemble_sae.sweep import Member, Sweep


def refuse_singular(sweep: Sweep, where: str, sources: Sources, members: list[Member]) -> None:
    """Whiten a sample of each hook as a worker will, for one member of those that want the same.

    Raises:
        UserError: a sample whose covariance is singular; names the sweep and the member.
    """
    chosen: dict[Any, Member] = {}
    for member in members:
        if member.hyperparameters.get("whitening") is True:
            floor = member.hyperparameters.get("input_relu")
            key = (member.hook, sample_size(member.n_dict), floor)
            chosen.setdefault(key, member)
    hooks = {hook for hook, *_ in chosen}
    stores = sources.open(hooks)
    rows = rows_of(hooks, stores)
    for (hook, count, _), member in chosen.items():
        if rows[hook].chunks():  # no rows: that is told by those who train on them
            sample = _sample(sweep, hook, count, rows[hook], stores)
            _try(member, sample, sweep.train.seed, where)


def _sample(
    sweep: Sweep, hook: str, count: int, rows: Rows, stores: Mapping[str, ChunkStore]
) -> Tensor:
    """Rows in the units of the training."""
    own = [stores[point] for point in Hook.parse(hook).points]
    parts = [Units.of(store, sweep.activations.normalise) for store in own]
    units = join_units(parts, [store.d_activation for store in own])
    return units.enter(sample_rows(rows, count, sweep.train.seed))


def _try(member: Member, rows: Tensor, seed: int, where: str) -> None:
    fit = optional(resolve(member.signature), "fit")
    try:
        if fit is not None:
            fit(*initial(member, seed), rows)
    except UserError as error:
        raise UserError(
            error.what,
            where=f"{where}: member {member.id} ({member.name}): {error.where}",
            found=error.found,
            allowed=error.allowed,
            next_step=error.next_step,
        ) from None
