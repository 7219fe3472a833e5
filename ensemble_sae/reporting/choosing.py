"""Members worth a look: along the frontier, from the sparsest to the densest."""

from __future__ import annotations

import math

from ensemble_sae.run import Run

# Active features per row that people ask for first; then what lies between and beyond.
WANTED = (20, 80, 5, 40, 10, 160, 2.5, 320, 640, 1.25)


def along_the_frontier(run: Run, count: int) -> list[int]:
    """So many Pareto-best members, those nearest to an L0 of 20, 80, 5, 40, 10, ..., of each hook
    in turn, then those farthest from all that are chosen; in ascending order of L0. The first
    members where nothing is Pareto-best.
    """
    table = run.members
    if "pareto" not in table or not table["pareto"].any():
        return [int(member) for member in table.index[:count]]
    best = table[table["pareto"]]
    l0 = {int(str(member)): float(value) for member, value in best["l0"].items()}
    hooks = [{int(m): l0[m] for m in own.index} for _, own in best.groupby("hook", sort=False)]
    nearest = (_nearest(own, wanted) for wanted in WANTED for own in hooks)
    found = list(dict.fromkeys(member for member in nearest if member is not None))[:count]
    while len(found) < min(count, len(l0)):
        found.append(_farthest(l0, found))
    return sorted(found, key=lambda member: l0[member])


def _nearest(l0: dict[int, float], wanted: float) -> int | None:
    """The member nearest in log L0; None beyond the ends, where nobody has been for half of it."""
    away = {m: abs(math.log(value / wanted)) for m, value in l0.items() if value > 0}
    member = min(away, key=lambda m: away[m], default=None)
    return None if member is None or away[member] > math.log(2) / 2 else member


def _farthest(l0: dict[int, float], chosen: list[int]) -> int:
    """The member whose log L0 is farthest from that of any chosen one."""
    log = {m: math.log(max(value, 1e-9)) for m, value in l0.items()}
    others = [m for m in l0 if m not in chosen]
    return max(others, key=lambda m: min((abs(log[m] - log[c]) for c in chosen), default=0.0))
