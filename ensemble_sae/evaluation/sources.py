"""What is put in the place of a hook's rows: reconstructions of a member, zeros, the mean row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ensemble_sae.data.hooks import Hook
from ensemble_sae.run.sae import Sae

ALL = "all"  # features, that is


class Label(NamedTuple):
    """Which row of the results: whose, and by which of its features."""

    name: str  # a member's id, or the name of a reference
    features: str
    kept: int  # features that are left


class Source(Protocol):
    """Gives replacements for the rows of a hook, one or several of the same rows.

    Attributes:
        hook: the rows of its inputs are read, those of its `measured` points replaced.
        labels: one per replacement.
    """

    hook: Hook
    labels: list[Label]

    def replacements(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For rows `[..., d]` of the inputs: what replaces those measured, and how many features
        are active, `[...]`.
        """
        ...


class MemberSource:
    """An autoencoder's reconstructions, by all of its features and by some.

    Args:
        name: in the results.
        subsets: name -> which features are left, bool `[n]`; the others' codes are set to zero.
    """

    def __init__(self, name: str, sae: Sae, hook: Hook, subsets: dict[str, Tensor]) -> None:
        self.hook, self._sae = hook, sae
        self._masks = {ALL: None, **subsets}
        n = sae.config.n_dict
        kept = {ALL: n} | {subset: int(mask.sum()) for subset, mask in subsets.items()}
        self.labels = [Label(name, subset, kept[subset]) for subset in self._masks]

    def replacements(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        code = self._sae.encode(rows)
        for mask in self._masks.values():
            kept = code if mask is None else code * mask
            yield self._sae.decode(kept), (kept != 0).sum(-1)


class ConstantSource:
    """The same row everywhere: zeros, or the mean.

    Args:
        row: `[d]`, of the measured points side by side.
    """

    def __init__(self, name: str, hook: Hook, row: Tensor) -> None:
        self.hook, self._row = hook, row
        self.labels = [Label(name, ALL, 0)]

    def replacements(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        shape = rows.shape[:-1]
        yield self._row.expand(*shape, -1), torch.zeros(shape, device=rows.device)
