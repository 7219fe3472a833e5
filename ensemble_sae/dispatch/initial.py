"""A member before its first step: drawn, fitted to a sample of rows, given its directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ensemble_sae.config.start import OWN, Start
from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors, resolve
from ensemble_sae.signatures.protocol import arguments, optional
from ensemble_sae.sweep import Member
from ensemble_sae.sweep.groups import structure
from ensemble_sae.train.planting import entered, start_at
from ensemble_sae.train.start import directions

SAMPLE_ROWS = 8192  # at least; twice the dictionary where that is more


def sample_size(n_dict: int) -> int:
    """How many rows are looked at for a member of `n_dict` features."""
    return max(SAMPLE_ROWS, 2 * n_dict)


def initial(member: Member, seed: int) -> tuple[Tensors, Tensors]:
    """A member's params and buffers as its signature draws them, before any row was seen.

    The draw is named by shape, signature and the member's own seed, not by its place in the
    sweep: members that differ in l1 alone start equal, so that their comparison is paired.
    """
    signature = resolve(member.signature)
    shape = (member.signature, member.d_activation, member.n_dict)
    draw = generator(seed, "init", *shape, member.seed)
    given = {"widths": member.widths} if "widths" in arguments(signature) else {}
    made: tuple[Tensors, Tensors] = signature.init(
        member.d_activation, member.n_dict, generator=draw, **given, **member.hyperparameters
    )
    return made


class Initials:
    """Makes the members of one stack; what they have in common is made once.

    Args:
        seed: of the run; n_dict: features of the stack, to which smaller members are padded.
        sample: gives a sample of rows `[S, d]` in the units of the training.
    """

    def __init__(self, seed: int, n_dict: int, sample: Callable[[int], Tensor]) -> None:
        self._seed, self._n_dict = seed, n_dict
        self._sample = sample
        self._rows: dict[int, Tensor] = {}
        self._directions: dict[Any, Tensor] = {}

    def make(self, member: Member) -> tuple[Tensors, Tensors]:
        """A member as it goes into its first step.

        Raises:
            UserError: the sample does not allow what the member asks for.
        """
        signature = resolve(member.signature)
        params, buffers = initial(member, self._seed)
        if fit := optional(signature, "fit"):
            params, buffers = fit(params, buffers, self._sampled(member))
        if member.init["kind"] != OWN:
            params = start_at(signature, params, self._started(member, params, buffers))
        return self._padded(member, params, buffers)

    def shell(self, member: Member) -> tuple[Tensors, Tensors]:
        """A member of the right shape, to load a saved state into; no row is looked at."""
        return self._padded(member, *initial(member, self._seed))

    def _padded(self, member: Member, params: Tensors, buffers: Tensors) -> tuple[Tensors, Tensors]:
        pad = optional(resolve(member.signature), "pad")
        if pad is None or member.n_dict == self._n_dict:
            return params, buffers
        wide: tuple[Tensors, Tensors] = pad(params, buffers, self._n_dict)
        return wide

    def _started(self, member: Member, params: Tensors, buffers: Tensors) -> Tensor:
        start = Start(**member.init)
        key = (start, member.seed, member.n_dict, structure(member))
        if key not in self._directions:
            rows = entered(resolve(member.signature), params, buffers, self._sampled(member))
            name = ("start", start.text, *rows.shape[1:], member.n_dict, member.seed)
            self._directions[key] = directions(
                start.kind,
                rows,
                member.n_dict,
                generator=generator(self._seed, *map(str, name)),
                rare=start.rare,
            )
        return self._directions[key]

    def _sampled(self, member: Member) -> Tensor:
        """As many rows as the member would see alone, whatever its stack is padded to."""
        count = sample_size(member.n_dict)
        if count not in self._rows:
            self._rows[count] = self._sample(count)
        return self._rows[count]
