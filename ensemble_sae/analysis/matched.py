"""Which feature of one dictionary is which of another: of two members, seeds, layers, or a chain.

Features are compared by the cosine of their directions. Across layers that says something where
both hooks are in one space, as points of the residual stream are: two layers that have only their
width in common can be compared too, and nothing will match.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.errors import nearest as near_miss
from ensemble_sae.metrics.matching import (
    FOUND,
    MAX_PAIRS,
    closest,
    cosine_blocks,
    hungarian,
    mmcs,
    usable,
)
from ensemble_sae.run import Run, Sae

if TYPE_CHECKING:
    import pandas as pd

How = Literal["cosine", "mutual", "hungarian"]
NONE = -1  # in place of a feature where there is none
KEPT = 16  # dictionaries that a table of matches holds at a time
# What tells members apart that are beside each other: alone, and nothing else.
_SIZE, _SEED, _HOOK = ("n_dict", "dict_ratio"), ("seed",), ("hook",)


def matched(
    a: Sae, b: Sae, *, how: How = "cosine", threshold: float | None = FOUND
) -> pd.DataFrame:
    """Pairs of a feature of `a` and one of `b`: columns `feature`, `other`, `cosine`.

    Sorted by `feature`. Directions that are zero or not finite are no features.

    Args:
        how: "cosine": each feature with the closest of `b`, which several may share. "mutual":
            pairs of which each is the other's closest, so that each is in one pair at most.
            "hungarian": the one-to-one assignment with the largest sum of cosines (Kuhn 1955).
        threshold: only pairs with a cosine above it; None for all pairs, however unlike.

    Raises:
        UserError: the widths differ; an unknown `how`; hungarian with more than 2**26 pairs.
    """
    import pandas as pd

    feature, other, cosine = _links(a, b, how, threshold)
    columns = {"feature": feature, "other": other, "cosine": cosine}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


@dataclass(frozen=True)
class Tracks:
    """Features followed through L dictionaries; T tracks, each with one feature in each at most.

    A track begins at a feature that none before it matches, and ends at one that none after it
    does. In the order in which they begin: by dictionary, then by feature.

    Attributes:
        features: the feature of each track in each dictionary, -1 where it has none, `[T, L]`.
        cosines: of a track's feature with the one before it, NaN where there is none,
            `[T, L - 1]`.
        names: of the dictionaries, as messages call them.
    """

    features: Tensor
    cosines: Tensor
    names: tuple[str, ...]

    @property
    def begins(self) -> Tensor:
        """The place of the first dictionary of each track, `[T]`."""
        return (self.features != NONE).int().argmax(1)

    @property
    def ends(self) -> Tensor:
        """The place of the last dictionary of each track, `[T]`."""
        return self.features.shape[1] - 1 - (self.features != NONE).flip(1).int().argmax(1)

    @property
    def table(self) -> pd.DataFrame:
        """One row per track: `begins`, `ends`, `length` (how many dictionaries), `weakest` (the
        smallest cosine from one to the next, NaN for a length of 1), and `feature_0`,
        `feature_1`, ..., -1 where the track is not there.
        """
        import pandas as pd

        begins, ends = self.begins, self.ends
        weakest = self.cosines.nan_to_num(nan=math.inf).amin(1)
        weakest = torch.where(weakest == math.inf, math.nan, weakest)
        columns = {"begins": begins, "ends": ends, "length": ends - begins + 1, "weakest": weakest}
        columns |= {f"feature_{at}": column for at, column in enumerate(self.features.unbind(1))}
        return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})

    @property
    def counts(self) -> pd.DataFrame:
        """One row per dictionary: its `name`, how many `features` it has, how many of them `go_on`
        from the one before, `begin` here, and `end` here (all of the last one do), and the mean
        `cosine` of those that go on.
        """
        import pandas as pd

        places = range(self.features.shape[1])
        there = self.features != NONE
        rows = {
            "name": list(self.names),
            "features": [int(there[:, at].sum()) for at in places],
            "go_on": [int((there[:, at] & (self.begins < at)).sum()) for at in places],
            "begin": [int((self.begins == at).sum()) for at in places],
            "end": [int((self.ends == at).sum()) for at in places],
            "cosine": [math.nan, *(float(c.double().nanmean()) for c in self.cosines.unbind(1))],
        }
        return pd.DataFrame(rows, index=pd.Index(places, name="place"))


def tracks(
    saes: Sequence[Sae], *, how: How = "hungarian", threshold: float | None = FOUND
) -> Tracks:
    """Follow features one-to-one through dictionaries in order, such as those of layers 0 to 5.

        tracks([run.sae(m) for m in (3, 11, 19)]).table

    Each dictionary is matched with the next alone: a track may turn, a little at each step.

    Args:
        saes: at least two, of one width.
        how: "hungarian" or "mutual", as of `matched`; the latter for more than 8,192 features.
        threshold: a feature goes on where its cosine with the next is above it.

    Raises:
        UserError: fewer than two; widths that differ; "cosine", which is not one-to-one.
    """
    if len(saes) < 2:
        raise UserError("A chain has two dictionaries at least.", found=str(len(saes)))
    if how == "cosine":
        raise UserError(
            "Features that are followed are matched one-to-one.",
            where="tracks(how)",
            found="cosine",
            allowed="hungarian, mutual",
        )
    links = [_links(a, b, how, threshold) for a, b in pairwise(saes)]
    atoms = [usable(sae.dictionary).cpu() for sae in saes]
    columns, cosines = [atoms[0]], []
    for (feature, other, cosine), here in zip(links, atoms[1:], strict=True):
        last = columns[-1]
        follows = torch.full((int(feature.max()) + 1 if len(feature) else 0,), NONE)
        value = torch.full_like(follows, math.nan, dtype=cosine.dtype)
        follows[feature], value[feature] = other, cosine
        goes = torch.isin(last, feature)
        column, along = torch.full_like(last, NONE), value.new_full(last.shape, math.nan)
        column[goes], along[goes] = follows[last[goes]], value[last[goes]]
        fresh = here[~torch.isin(here, other)]
        columns.append(torch.cat([column, fresh]))
        cosines.append(along)
    total = len(columns[-1])
    return Tracks(
        features=torch.stack([_padded(column, total, NONE) for column in columns], 1),
        cosines=torch.stack([_padded(c.double(), total, math.nan) for c in cosines], 1),
        names=tuple(_name(sae) for sae in saes),
    )


def match_table(
    run: Run, members: Iterable[int] | None = None, *, threshold: float = FOUND
) -> pd.DataFrame:
    """How much of one member is in another, for pairs of a run's members.

    Columns: `member`, `other`; `differs`, the keys of their configurations that differ; `mmcs`,
    the mean over the features of `member` of the largest cosine with one of `other`;
    `mmcs_back`, the same from `other`; `hungarian`, the mean cosine of the best one-to-one
    assignment, and `share`, the share of its pairs with a cosine above the threshold (both NaN
    for more than 2**26 pairs to choose from).

    Args:
        members: ids: all pairs of them that have one width. By default the pairs of the run that
            are beside each other: one size and the next larger one, two seeds, or two hooks of
            one width, with all else equal; no row if there are none.

    Raises:
        UserError: an unknown member; no two of the members have one width.
        CorruptFile: a checkpoint is damaged.
    """
    import pandas as pd

    rows = {member: config.as_row() for member, config in run.configurations.items()}
    widths = {m: c.d_target or c.d_activation for m, c in run.configurations.items()}
    pairs = list(_beside(rows) if members is None else _all_pairs(run, members))
    same = [(one, other) for one, other in pairs if widths[one] == widths[other]]
    if pairs and not same:
        widths = {m: widths[m] for m in sorted({m for pair in pairs for m in pair})}
        raise UserError(
            "No two of these members have one width.",
            where=str(run.path),
            found=", ".join(f"member {m}: {width}" for m, width in widths.items()),
            allowed="members of one d_activation",
        )
    atoms = lru_cache(KEPT)(lambda member: run.sae(member).dictionary)
    found = [
        {"member": one, "other": other, "differs": _differing(rows[one], rows[other])}
        | _compared(atoms(one), atoms(other), threshold)
        for one, other in same
    ]
    columns = ["member", "other", "differs", "mmcs", "mmcs_back", "hungarian", "share"]
    return pd.DataFrame(found, columns=columns)


def nearest(
    sae: Sae, others: Sae | Sequence[Sae] | Mapping[Any, Sae] = (), k: int = 5
) -> pd.DataFrame:
    """For every feature the k nearest in this member, itself left out, and in each other member.

    Columns: `feature`; `member`, whose id or name; `other`, a feature of that member; `cosine`.
    Sorted by feature, then members in the order given (this one first), then the nearest first.
    A dictionary with fewer features gives fewer. A block of cosines is held at a time: memory
    grows with k times the features.

    Args:
        others: a member of the same width, several, or a mapping that names them, for those of
            several runs. One whose dictionary equals that of `sae` is this member again, and
            left out.

    Raises:
        UserError: widths that differ; members of one id without names; k is not positive.
    """
    import pandas as pd

    if k < 1:
        raise UserError("There is no such number of features.", where="k", found=str(k))
    atoms, frames = sae.dictionary, []
    for label, other in _labelled(sae, others):
        _same_width(sae, other)
        found = atoms if other is sae else other.dictionary.to(atoms.device)
        rows, index, cosine = _nearest(atoms, found, k, itself=other is sae)
        there = cosine > -math.inf
        feature = rows[:, None].expand_as(index)[there]
        columns = {"feature": feature, "other": index[there], "cosine": cosine[there]}
        frame = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
        frame.insert(1, "member", [label] * len(frame))
        frames.append(frame)
    return pd.concat(frames).sort_values("feature", kind="stable", ignore_index=True)


def _links(a: Sae, b: Sae, how: How, threshold: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Features of `a`, those of `b`, and their cosines, by feature: each `[p]`, on the CPU."""
    _same_width(a, b)
    if how not in get_args(How):
        raise UserError("Unknown way to match.", found=how, allowed=near_miss(how, get_args(How)))
    one, two = a.dictionary.cpu(), b.dictionary.cpu()
    if how == "hungarian":
        _few_enough(one, two)
        pairs = hungarian(one, two)
        feature, other, cosine = pairs.rows, pairs.columns, pairs.cosines
    else:
        cosine, other = closest(one, two)
        feature = (other != NONE).nonzero()[:, 0]
        if how == "mutual":
            back = closest(two, one).index
            feature = feature[back[other[feature]] == feature]
        other, cosine = other[feature], cosine[feature]
    chosen = cosine > (-math.inf if threshold is None else threshold)
    return feature[chosen], other[chosen], cosine[chosen]


def _few_enough(one: Tensor, two: Tensor) -> None:
    if len(one) * len(two) > MAX_PAIRS:
        raise UserError(
            "These dictionaries are too large for a one-to-one assignment.",
            found=f"{len(one):,} x {len(two):,} features",
            allowed=f"{MAX_PAIRS:,} pairs, such as {math.isqrt(MAX_PAIRS):,} squared",
            next_step='how="mutual": pairs of which each is the other\'s closest',
        )


def _nearest(
    atoms: Tensor, others: Tensor, k: int, *, itself: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Features `[r]`, and of each the k nearest others and their cosines, `[r, k]`; -inf: none."""
    rows, columns = usable(atoms), usable(others)
    precision = torch.promote_types(atoms.dtype, others.dtype)
    best = atoms.new_full((len(rows), k), -math.inf, dtype=precision)
    index = torch.full_like(best, NONE, dtype=torch.int64)
    for top, left, cosines in cosine_blocks(atoms, rows, others, columns):
        height, width = cosines.shape
        if itself and top < left + width and left < top + height:  # the diagonal crosses it
            here = torch.arange(max(top, left), min(top + height, left + width))
            cosines[here - top, here - left] = -math.inf
        part = slice(top, top + height)
        highest, at = cosines.topk(min(k, width), dim=1)
        values = torch.cat([best[part], highest], 1)
        places = torch.cat([index[part], columns[left + at]], 1)
        best[part], order = values.topk(k, dim=1)
        index[part] = places.gather(1, order)
    return rows, index, torch.where(best > -math.inf, best.clamp(-1, 1), best)


def _labelled(sae: Sae, others: Sae | Sequence[Sae] | Mapping[Any, Sae]) -> list[tuple[Any, Sae]]:
    """This member and the others, by what the table calls them."""
    if isinstance(others, Mapping):
        given = list(others.items())
    else:
        listed = [others] if isinstance(others, Sae) else others
        given = [(other.config.id, other) for other in listed]
    own = sae.dictionary
    rest = [(name, o) for name, o in given if not torch.equal(o.dictionary.to(own.device), own)]
    labels = [sae.config.id, *(name for name, _ in rest)]
    if twice := {str(label) for label in labels if labels.count(label) > 1}:
        raise UserError(
            "Several members have one id.",
            where="nearest(others)",
            found=", ".join(sorted(twice)),
            next_step='name them: nearest(sae, {"seed 1": other})',
        )
    return [(sae.config.id, sae), *rest]


def _same_width(a: Sae, b: Sae) -> None:
    widths = [sae.dictionary.shape[1] for sae in (a, b)]
    if widths[0] != widths[1]:
        raise UserError(
            "Only features of the same width can be compared.",
            where=f"{_name(a)} and {_name(b)}",
            found=f"widths {widths[0]} and {widths[1]}",
            allowed="members of hooks of one width",
        )


def _name(sae: Sae) -> str:
    hook = f" on {sae.config.hook}" if sae.config.hook else ""
    return f"member {sae.config.id} ({sae.config.name}{hook})"


def _padded(values: Tensor, length: int, fill: float) -> Tensor:
    return torch.cat([values, values.new_full((length - len(values),), fill)])


def _beside(rows: dict[int, dict[str, Any]]) -> Iterator[tuple[int, int]]:
    for family in _families(rows, _SIZE):
        yield from pairwise(sorted(family, key=lambda member: (rows[member]["n_dict"], member)))
    for keys in (_SEED, _HOOK):
        for family in _families(rows, keys):
            yield from combinations(family, 2)


def _families(rows: dict[int, dict[str, Any]], keys: tuple[str, ...]) -> list[list[int]]:
    """Members whose configurations are equal but for some keys."""
    families: dict[str, list[int]] = {}
    for member, row in rows.items():
        rest = {key: value for key, value in row.items() if key not in ("id", "name", *keys)}
        families.setdefault(json.dumps(rest, sort_keys=True), []).append(member)
    return list(families.values())


def _all_pairs(run: Run, members: Iterable[int]) -> Iterator[tuple[int, int]]:
    chosen = list(dict.fromkeys(members))
    for unknown in set(chosen) - set(run.configurations):
        run.sae(unknown)  # which says what there is
    return combinations(chosen, 2)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The keys in which two configurations differ; the ratio follows from the size."""
    keys = dict.fromkeys([*one, *other])
    found = [k for k in keys if k not in ("id", "name") and one.get(k) != other.get(k)]
    return ", ".join(k for k in found if k != "dict_ratio" or "n_dict" not in found)


def _compared(one: Tensor, other: Tensor, threshold: float) -> dict[str, float]:
    few = len(one) * len(other) <= MAX_PAIRS
    pairs = hungarian(one, other, threshold=threshold) if few else None
    return {
        "mmcs": mmcs(one, other),
        "mmcs_back": mmcs(other, one),
        "hungarian": pairs.mean if pairs else math.nan,
        "share": pairs.share if pairs else math.nan,
    }
