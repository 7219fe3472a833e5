"""A name for every member: its signature, its size, and what differs in the sweep."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

from ensemble_sae.config.dynamics import DYNAMICS
from ensemble_sae.sweep.member import Member

SHORT = {"bias_decay": "bd", "l0_coefficient": "l0c", "target_l0": "L0"}
ALWAYS = ("l1", "l0_coefficient", "k", "bias_decay")  # what says how sparse, also if one for all
COMMON = ("hook", "grad_clip", "seed")
TRAINED = ("init", *sorted(DYNAMICS - {"lr", "grad_clip"}))


def with_names(drafts: list[Member]) -> list[Member]:
    """Number the members and name each by signature, ratio, and what differs in the sweep."""
    rows = [draft.as_row() for draft in drafts]
    varies = {f for f in (*COMMON, "lr") if len({row[f] for row in rows}) > 1}
    own = _varying(drafts, [draft.hyperparameters for draft in drafts])
    trained = _varying(drafts, [{name: row.get(name) for name in TRAINED} for row in rows])
    members = []
    for index, (draft, row) in enumerate(zip(drafts, rows, strict=True)):
        words = [draft.signature.rpartition(":")[2]]
        shown = [n for n in draft.hyperparameters if n in own[draft.signature] or n in ALWAYS]
        words += [_named(name, draft.hyperparameters[name]) for name in shown]
        words.insert(min(2, len(words)), f"r={draft.dict_ratio:g}")
        words += [_named(f, row[f]) for f in COMMON if f in varies]
        words += [_named(f, row[f]) for f in TRAINED if f in trained[draft.signature]]
        if "lr" in varies:
            words.append(f"lr={draft.lr}")
        members.append(replace(draft, id=index, name=" ".join(words)))
    times = Counter(member.name for member in members)  # values closer than a name has digits
    return [m if times[m.name] == 1 else replace(m, name=f"{m.name} #{m.id}") for m in members]


def _varying(drafts: list[Member], values: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Signature -> the names of values in which its members differ."""
    seen: dict[str, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for draft, own in zip(drafts, values, strict=True):
        for name, value in own.items():
            seen[draft.signature][name].add(value)
    return {s: {n for n, values in own.items() if len(values) > 1} for s, own in seen.items()}


def _named(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        text = value if isinstance(value, str) else str(value).lower()
    else:
        text = f"{value:g}"
    if name in ("l1", "l0_coefficient") and value:
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{SHORT.get(name, name)}={text}"
