"""The slices of a stack, and the optimiser's state of each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchopt.base import GradientTransformation

from ensemble_sae.signatures import Tensors
from ensemble_sae.train import optimiser, stacking
from ensemble_sae.train.slices import Slice


class States:
    """`slices`, and `of[i]`: the optimiser's state of slice i, as its transformation has it."""

    def __init__(
        self, transformation: GradientTransformation, params: Tensors, slices: Sequence[Slice]
    ) -> None:
        self.slices = list(slices)
        self.of = [
            transformation.init(stacking.slice_of(params, start, stop)) for start, stop, _ in slices
        ]

    def joined(self) -> Tensors:
        """All members' states, flat, with members on axis 0."""
        return optimiser.join(self.of)

    def recut(self, slices: Sequence[Slice], joined: Tensors) -> None:
        """Take other slices, with the states that `joined` has."""
        like = self.of[0]
        self.slices = list(slices)
        self.of = [optimiser.cut(like, joined, start, stop) for start, stop, _ in slices]

    def forget(self, member: int, features: Tensor, names: tuple[str, ...]) -> None:
        """Zero what is remembered of features `[m]` of a member, in the params of these names."""
        for (start, stop, _), state in zip(self.slices, self.of, strict=True):
            if start <= member < stop:
                optimiser.forget(state, member - start, features, names)
