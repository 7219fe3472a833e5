"""The optimisers' papers, line by line, for one array."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray


class Adam:
    """Kingma & Ba 2015, algorithm 1."""

    def __init__(
        self, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.m: Array | float = 0.0
        self.v: Array | float = 0.0
        self.t = 0

    def update(self, g: Array, p: Array | None = None) -> Array:
        """What is added to the parameter p."""
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        m_hat = self.m / (1 - self.beta1**self.t)
        v_hat = self.v / (1 - self.beta2**self.t)
        return -self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


class AdamW(Adam):
    """Loshchilov & Hutter 2019, algorithm 2, with lr as the schedule multiplier of line 12."""

    def __init__(self, lr: float, weight_decay: float, **adam: float) -> None:
        super().__init__(lr, **adam)
        self.weight_decay = weight_decay

    def update(self, g: Array, p: Array | None = None) -> Array:
        assert p is not None
        return super().update(g) - self.lr * self.weight_decay * p


class RAdam:
    """Liu et al. 2020, algorithm 2, which rectifies from rho > 5 on, with eps, as its code does."""

    def __init__(
        self, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.m: Array | float = 0.0
        self.v: Array | float = 0.0
        self.t = 0

    def update(self, g: Array, p: Array | None = None) -> Array:
        self.t += 1
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        m_hat = self.m / (1 - self.beta1**self.t)
        most = 2 / (1 - self.beta2) - 1
        rho = most - 2 * self.t * self.beta2**self.t / (1 - self.beta2**self.t)
        if rho <= 5:
            return -self.lr * m_hat
        adaptive = math.sqrt(1 - self.beta2**self.t) / (np.sqrt(self.v) + self.eps)
        r = math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
        return -self.lr * r * m_hat * adaptive


class RMSprop:
    """Tieleman & Hinton 2012, lecture 6e."""

    def __init__(self, lr: float, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.lr, self.beta2, self.eps = lr, beta2, eps
        self.v: Array | float = 0.0

    def update(self, g: Array, p: Array | None = None) -> Array:
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        return -self.lr * g / (np.sqrt(self.v) + self.eps)


class SGD:
    """Sutskever et al. 2013, equation 1, with the learning rate outside of the velocity."""

    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum = lr, momentum
        self.velocity: Array | float = 0.0

    def update(self, g: Array, p: Array | None = None) -> Array:
        self.velocity = self.momentum * self.velocity + g
        return -self.lr * self.velocity


OPTIMISERS: dict[str, Any] = {
    "adam": Adam,
    "adamw": AdamW,
    "radam": RAdam,
    "rmsprop": RMSprop,
    "sgd": SGD,
}
