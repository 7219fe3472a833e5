"""Sums over tokens: by position in the context, and by how frequent the token is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

EDGES = (1e-5, 1e-4, 1e-3, 1e-2)  # between bands of frequency: a token's share of all tokens
BANDS = (
    "below 0.001%",
    "0.001% to 0.01%",
    "0.01% to 0.1%",
    "0.1% to 1%",
    "1% and above",
)
PREDICTIONS, ROWS = ("ce", "kl"), ("error", "l0")  # counted per prediction; per replaced row


def bands_of(counts: Tensor) -> Tensor:
    """The band of each token, int64 `[V]`, from how often it occurs."""
    share = counts.double() / counts.sum()
    return torch.bucketize(share, torch.tensor(EDGES, dtype=torch.float64), right=True)


class Tally:
    """Sums of K sources over tokens, float64 on the CPU.

    Args:
        sources: K. width: positions of a context, T. bands: of each token id, int64 `[V]`.

    Attributes:
        sums: name -> `[K, T]` and `NAME by band` -> `[K, N]`, N bands; of CE, KL, squared error,
            active features, and `variance`, what the squared error of the mean row would be.
        counts: predictions and rows, `[T]` and `[N]` of each.
    """

    def __init__(self, sources: int, width: int, bands: Tensor) -> None:
        self._bands = bands
        names = (*PREDICTIONS, *ROWS, "variance")
        zeros = torch.zeros
        self.sums = {name: zeros(sources, width, dtype=torch.float64) for name in names}
        self.sums |= {by(n): zeros(sources, len(BANDS), dtype=torch.float64) for n in names}
        self.counts = {name: zeros(width, dtype=torch.float64) for name in ("predictions", "rows")}
        self.counts |= {
            by(n): zeros(len(BANDS), dtype=torch.float64) for n in ("predictions", "rows")
        }

    def count(self, tokens: Tensor, is_predicted: Tensor, is_read: Tensor) -> None:
        """Count a batch of contexts `[B, T]`: what is averaged over."""
        for name, which in (("predictions", is_predicted), ("rows", is_read)):
            self._into(self.counts, name, None, which.double(), tokens)

    def add(self, source: int, values: Mapping[str, Tensor], tokens: Tensor) -> None:
        """Add what was measured of one source, `[B, T]` each, zero where nothing counts."""
        for name, found in values.items():
            self._into(self.sums, name, source, found.double(), tokens)

    def _into(
        self, room: dict[str, Tensor], name: str, source: int | None, found: Tensor, tokens: Tensor
    ) -> None:
        found = found.cpu()
        by_position, by_band = room[name], room[by(name)]
        if source is not None:
            by_position, by_band = by_position[source], by_band[source]
        by_position += found.sum(0)
        by_band.index_add_(0, self._bands[tokens.cpu()].flatten(), found.flatten())

    def state(self) -> dict[str, Tensor]:
        """All of it, to be saved: not copies."""
        sums = {f"sums/{name}": values for name, values in self.sums.items()}
        return sums | {f"counts/{name}": values for name, values in self.counts.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is not one of such a tally, which stays as it is.
        """
        own = self.state()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
            raise ValueError("sums of another shape")
        for name, values in own.items():
            values.copy_(state[name])


def by(name: str) -> str:
    """The key of a quantity's sums by band."""
    return f"{name} by band"
