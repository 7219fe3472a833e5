"""A name for every member: its signature, its size, and what differs in the sweep."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

from ensemble_sae.config.dynamics import DYNAMICS
from ensemble_sae.sweep.member import Member

SHORT = {"bias_decay": "bd", "l0_coefficient": "l0c", "target_l0": "L0"}
ALWAYS = ("l1", "l0_coefficient", "k", "bias_decay")  # what says how sparse, also if one for all
COMMON = ("hook", "lr", "grad_clip", "seed", "init")


def with_names(drafts: list[Member]) -> list[Member]:
    """Number the members and name each by signature, ratio, and what differs in the sweep."""
    rows = [draft.as_row() for draft in drafts]
    varies = {f for f in (*COMMON, *DYNAMICS) if len({row.get(f) for row in rows}) > 1}
    own = _varying_hyperparameters(drafts)
    members = []
    for index, (draft, row) in enumerate(zip(drafts, rows, strict=True)):
        words = [draft.signature.rpartition(":")[2]]
        shown = [n for n in draft.hyperparameters if n in own[draft.signature] or n in ALWAYS]
        words += [_named(name, draft.hyperparameters[name]) for name in shown]
        words.insert(min(2, len(words)), f"r={draft.dict_ratio:g}")
        words += [_named(f, row[f]) for f in (*COMMON, *sorted(DYNAMICS)) if f in varies - {"lr"}]
        if "lr" in varies:
            words.append(f"lr={draft.lr}")
        members.append(replace(draft, id=index, name=" ".join(words)))
    times = Counter(member.name for member in members)  # values closer than a name has digits
    return [m if times[m.name] == 1 else replace(m, name=f"{m.name} #{m.id}") for m in members]


def _varying_hyperparameters(drafts: list[Member]) -> dict[str, set[str]]:
    """Signature -> the hyper-parameters in which its members differ."""
    seen: dict[str, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for draft in drafts:
        for name, value in draft.hyperparameters.items():
            seen[draft.signature][name].add(value)
    return {s: {n for n, values in own.items() if len(values) > 1} for s, own in seen.items()}


def _named(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        text = str(value).lower() if isinstance(value, bool) else str(value)
    else:
        text = f"{value:g}"
    if name in ("l1", "l0_coefficient") and value:
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{SHORT.get(name, name)}={text}"
