"""Along the positions of a context: error, active features, and the embedding's own axes.

Source: Chughtai and Lau 2024, "Understanding Positional Features in Layer 0 SAEs".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ensemble_sae.analysis.positions import Placed, Span
from ensemble_sae.errors import UserError
from ensemble_sae.metrics.reconstruction import Variance
from ensemble_sae.run import Sae


@dataclass(frozen=True)
class PositionCurves:
    """One autoencoder at each of P positions; NaN where there was no row.

    Attributes:
        rows: `[P]`, how many.
        error: mean over the rows of |x - x^|^2, `[P]` float64.
        variance: mean of |x - mean x|^2 over all rows within the span.
        l0: mean number of active features, `[P]`.
        active: the same of each chosen feature: the share of rows it is active on, `[m, P]`.
        activation: mean activation of each chosen feature, `[m, P]`.
        span: the positions that the variance is taken over.
    """

    rows: Tensor
    error: Tensor
    variance: float
    l0: Tensor
    active: Tensor
    activation: Tensor
    span: Span

    @property
    def fvu(self) -> Tensor:
        """The error at each position, over the variance within the span, `[P]`.

        One denominator for all, so that the curve has the shape of the error: 1 is what the mean
        row of the span reaches there.
        """
        return self.error / self.variance

    def mean_fvu(self, start: int, stop: int) -> float:
        """FVU over all rows at the positions from `start` up to but not including `stop`."""
        return self._mean(self.fvu, start, stop)

    def mean_l0(self, start: int, stop: int) -> float:
        """L0 over the same."""
        return self._mean(self.l0, start, stop)

    def _mean(self, values: Tensor, start: int, stop: int) -> float:
        rows = self.rows[start:stop]
        return float((values[start:stop].nan_to_num(0.0) * rows).sum() / rows.sum())


@torch.no_grad()
def along(
    sae: Sae, rows: Iterable[Placed], positions: int, span: Span, chosen: Tensor | None = None
) -> PositionCurves:
    """Reconstruction and activity at each position of a text's contexts.

    Args:
        rows: with their tokens and positions: `rows_of_text`, for one.
        positions: of a context, P.
        span: the positions that the autoencoder was trained on: what FVU is measured against.
        chosen: features that are followed one by one, int64 `[m]`.

    Raises:
        UserError: the autoencoder predicts other rows than it reads, or there is no row in the
            span.
    """
    if sae.config.d_target:
        raise UserError(
            "This autoencoder predicts other rows than it reads: no error is measured here.",
            where=repr(sae),
            allowed='a hook without "->"',
        )
    chosen = torch.zeros(0, dtype=torch.int64) if chosen is None else chosen.cpu()
    sums = torch.zeros(positions, 2 * len(chosen) + 2).double()
    counts, spread = torch.zeros(positions).double(), Variance()
    for values, _, at in rows:
        code = sae.encode(values)
        error = (sae.decode(code) - values).double().square().sum(1)
        some = code[:, chosen.to(code.device)]
        columns = [error[:, None], (code != 0).sum(1, keepdim=True), some != 0, some]
        sums.index_add_(0, at, torch.cat([c.double() for c in columns], 1).cpu())
        counts += torch.bincount(at, minlength=positions)
        if (within := (at >= span[0]) & (at < span[1])).any():
            spread.add(values[within.to(values.device)])
    if spread.rows == 0:
        raise UserError("There are no rows at these positions.", next_step="give a longer text")
    means = (sums / counts[:, None]).T  # 0 / 0 where there was no row
    active, activation = means[2:].float().tensor_split(2)
    return PositionCurves(
        counts, means[0], spread.total / spread.rows, means[1], active, activation, span
    )


@dataclass(frozen=True)
class PositionAxes:
    """The position embeddings' principal axes.

    Attributes:
        middle: mean of the embeddings within the span, `[d]`.
        axes: orthonormal rows `[k, d]`, the first explains most.
        share: of the variance within the span, of each axis, `[k]`.
    """

    middle: Tensor
    axes: Tensor
    share: Tensor

    def place(self, points: Tensor) -> Tensor:
        """Coordinates of points `[..., d]`, such as embeddings, around their middle: `[..., k]`."""
        return self.directions(points.to(self.middle) - self.middle)

    def directions(self, vectors: Tensor) -> Tensor:
        """Coordinates of what is added to a point, as an atom is: `[..., d] -> [..., k]`."""
        return vectors.to(self.axes) @ self.axes.T


def position_axes(positions: Tensor, span: Span, k: int = 3) -> PositionAxes:
    """PCA of the position embeddings `[P, d]` within a span.

    GPT-2 small's first three axes explain 95% of the variance of positions 1 to 127 (the source);
    position 0 is left out there too.
    """
    points = positions[slice(*span)].detach().double().cpu()
    middle = points.mean(0)
    _, values, axes = torch.linalg.svd(points - middle, full_matrices=False)
    share = values.square() / values.square().sum()
    return PositionAxes(middle, axes[:k], share[:k])


def parts(sae: Sae, code: Tensor) -> Tensor:
    """What codes `[..., n]` add to the reconstruction, in the rows' units: `[..., d]`."""
    return sae.decode(code) - sae.decode(code.new_zeros(code.shape[-1]))


@dataclass(frozen=True)
class Traced:
    """The position embeddings as some features tell them, and as they are.

    Attributes:
        told: sum over the features of m(p) times their atoms, in the rows' units, `[P, d]`.
        positions: `[P, d]`.
        span: the positions that both are centred over.
    """

    told: Tensor
    positions: Tensor
    span: Span

    @cached_property
    def error(self) -> Tensor:
        """Squared distance at each position, over the embeddings' variance in the span, `[P]`."""
        told, true = (self._centred(points) for points in (self.told, self.positions))
        variance = true[slice(*self.span)].square().sum(1).mean()
        return (told - true).square().sum(1) / variance

    @property
    def explained(self) -> float:
        """Share of the embeddings' variance in the span that the features tell; 1 is all."""
        return 1 - float(self.error[slice(*self.span)].mean())

    def _centred(self, points: Tensor) -> Tensor:
        points = points.detach().double().cpu()
        return points - points[slice(*self.span)].mean(0)


def traced(sae: Sae, by_position: Tensor, chosen: Tensor, positions: Tensor, span: Span) -> Traced:
    """How much of the position embeddings is in some features: their mean parts at each position.

    Args:
        by_position: m(p), `[n, P]`: `PositionScores.by_position`.
        chosen: the features, int64 `[m]`.
        positions: the embeddings `[P, d]`.
    """
    code = torch.zeros_like(by_position.T)
    code[:, chosen] = by_position.T[:, chosen]
    return Traced(parts(sae, code), positions, span)
