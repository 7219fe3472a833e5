"""Text with features whose cause is known."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_sae.inspection.examples import Contexts, Examples

FRAGMENTS, WIDTH = 2000, 64


def text(vocabulary: int, seed: int = 0) -> Tensor:
    """Fragments of tokens as frequent as words are, int32 `[FRAGMENTS, WIDTH]`."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 1 / (5 + torch.arange(vocabulary).float())
    drawn = torch.multinomial(frequency, FRAGMENTS * WIDTH, True, generator=generator)
    return drawn.reshape(FRAGMENTS, WIDTH).int()


def examples(tokens: Tensor, activations: Tensor, count: int = 20, seed: int = 0) -> Examples:
    """`count` top and random fragments of features `[F, FRAGMENTS, WIDTH]`; none spread."""
    order = activations.amax(-1).argsort(dim=1, descending=True)[:, :count]
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(len(tokens), generator=generator)[:count] for _ in activations]

    def contexts(places: Tensor) -> Contexts:
        own = torch.stack([a[p] for a, p in zip(activations, places, strict=True)])
        return Contexts(tokens[places], own.float(), places)

    return Examples(
        torch.arange(len(activations)),
        contexts(order),
        contexts(order[:, :0]),
        contexts(torch.stack(draws)),
    )
