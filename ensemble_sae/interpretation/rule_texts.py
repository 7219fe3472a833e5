"""Rules as text that a person reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ensemble_sae.interpretation.tables import Bools, Table

SAID = 5  # so many tokens are named
STRETCHES = 3  # and so many stretches of positions
BEGINNING = "(beginning)"  # what is before the first token of a fragment
NOTABLE = 0.2  # a share of what the rule explains; less is not worth a word


def tell_tokens(table: Table, feature: int, read: Callable[[int], str]) -> str:
    """ "on ` self`, ` cls` and 3 more"; "low on ` the`" where a feature is below its mean."""
    return _tell(table, feature, lambda s: f"`{read(s)}`", "on")


def tell_previous(table: Table, feature: int, read: Callable[[int], str]) -> str:
    """ "after `def`, ` class`"; the last symbol is the beginning."""
    first = table.span - 1
    return _tell(table, feature, lambda s: BEGINNING if s == first else f"`{read(s)}`", "after")


def _tell(table: Table, feature: int, name: Callable[[int], str], word: str) -> str:
    symbols, values, gains = table.entries(feature)
    above = values > table.elsewhere[feature]
    said = []
    for some, start in ((above, word), (~above, f"low {word}")):
        if gains[some].sum() >= NOTABLE * gains.sum() > 0:
            said.append(f"{start} {_listing([name(int(s)) for s in symbols[some]])}")
    return "; ".join(said)


def tell_position(table: Table, feature: int, read: Callable[[int], str]) -> str:
    """ "at positions 40-49": where the profile is in the upper half of its range.

    Where that is most of the fragment: "except at the beginning of the fragment (position 0)".
    """
    profile = table.profile(feature)
    inside = profile > (profile.max() + profile.min()) / 2
    most = inside.mean() > 0.5
    stretches = _stretches(~inside if most else inside)
    said = [_stretch(low, high, len(profile) - 1) for low, high in stretches[:STRETCHES]]
    more = len(stretches) - len(said)
    told = ("except " if most else "") + "; ".join(said)
    return told + (f"; and {more} more" if more else "")


def _stretch(low: int, high: int, last: int) -> str:
    where = f"position {low}" if low == high else f"positions {low}-{high}"
    if low == 0:
        return f"at the beginning of the fragment ({where})"
    return f"at the end of the fragment ({where})" if high == last else f"at {where}"


def _listing(names: Sequence[str]) -> str:
    more = len(names) - SAID
    return ", ".join(names[:SAID]) + (f" and {more} more" if more > 0 else "")


def _stretches(inside: Bools) -> list[tuple[int, int]]:
    """First and last place of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(int)))
    return [(int(low), int(high) - 1) for low, high in edges.reshape(-1, 2)]
