"""Adam, and the metrics of a reconstruction."""

from __future__ import annotations

import numpy as np


class Adam:
    """Kingma & Ba 2015, algorithm 1, line by line, for one array."""

    def __init__(
        self, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.m: np.ndarray | float = 0.0
        self.v: np.ndarray | float = 0.0
        self.t = 0

    def update(self, g: np.ndarray) -> np.ndarray:
        """What is added to the parameter."""
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        m_hat = self.m / (1 - self.beta1**self.t)
        v_hat = self.v / (1 - self.beta2**self.t)
        return -self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


def fvu(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sum((x - y) ** 2) / np.sum((x - x.mean(0)) ** 2))


def l0(code: np.ndarray) -> float:
    return float(np.mean([np.count_nonzero(row) for row in code]))


def dead(code: np.ndarray) -> float:
    """Share of features that fire on no row."""
    return float(np.mean([not feature.any() for feature in code.T]))


def strength(code: np.ndarray) -> np.ndarray:
    """Mean |activation| of each feature over the rows on which it is active, else 0."""
    return np.array([np.abs(f[f != 0]).mean() if f.any() else 0.0 for f in code.T])


def pareto(fvu: list[float], l0: list[float]) -> list[bool]:
    """Not chosen: what another point is as good as in both and better in one; later twins; NaN."""

    def beats(j: int, i: int) -> bool:
        as_good = fvu[j] <= fvu[i] and l0[j] <= l0[i]
        return as_good and (fvu[j] < fvu[i] or l0[j] < l0[i] or j < i)

    points = range(len(fvu))
    return [
        not np.isnan(fvu[i] + l0[i]) and not any(beats(j, i) for j in points if j != i)
        for i in points
    ]
