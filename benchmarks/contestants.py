"""What is timed: the ensemble by kernel, loops over single models, two limits of the hardware.

Every contestant starts from the same members and does the same mathematics on the same batches;
`measure.py` checks that before it takes a time. The limits compute nothing of use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, Protocol

import torch
from torch import Tensor

from ensemble_sae.kernels.choice import EVERY, Kernel
from ensemble_sae.randomness import generator
from ensemble_sae.signatures import Tensors, resolve
from ensemble_sae.train import FunctionalEnsemble

LR = 1e-3
L1 = 3e-3
PRODUCTS = 5  # of B * n * d multiply-adds: code, reconstruction, code gradient, two weights'
RANKED = ("topk", "batchtopk")  # signatures whose density is a number of their own, k / n
LOOK = 64  # rows that are enough to tell a density


@dataclass(frozen=True)
class Shape:
    """Members of one kind. With several dictionary sizes, members take them in turn.

    Args:
        name: for tables; d: values per row; dicts: dictionary sizes n; batch: rows of a step, B.
        density: the share of features that are active in a row at the start, on average; None
            for members as they are initialised, which is about a half.
    """

    name: str
    d: int
    dicts: tuple[int, ...]
    batch: int
    signature: str
    density: float | None = None

    @classmethod
    def of(cls, described: dict[str, Any]) -> Shape:
        """From a dict of its fields, as JSON has it."""
        return cls(**{**described, "dicts": tuple(described["dicts"])})

    def sizes(self, members: int) -> list[int]:
        """The dictionary size of each member."""
        return [self.dicts[i % len(self.dicts)] for i in range(members)]

    def flop(self, members: int) -> int:
        """Floating point operations of the products of one step of all members."""
        return 2 * PRODUCTS * self.batch * self.d * sum(self.sizes(members))

    def initial(self, members: int) -> list[tuple[Tensors, Tensors]]:
        """The first params and buffers of each member."""
        return [self._member(index, n) for index, n in enumerate(self.sizes(members))]

    def batches(self, count: int, device: torch.device) -> list[Tensor]:
        """Normally distributed rows, `count` times `[B, d]`."""
        draw = generator(0, "benchmark rows", self.d)
        return [torch.randn(self.batch, self.d, generator=draw).to(device) for _ in range(count)]

    def _member(self, index: int, n: int) -> tuple[Tensors, Tensors]:
        """On rows from a normal distribution a score is one too, as wide as its encoder is long."""
        signature, draw = resolve(self.signature), generator(0, "benchmark", n, index)
        if self.signature in RANKED:
            k = {} if self.density is None else {"k": float(max(1, round(self.density * n)))}
            return signature.init(self.d, n, generator=draw, **k)
        params, buffers = signature.init(self.d, n, generator=draw, l1=L1)
        if self.density is not None:
            bias = params["encoder_bias"]
            encoder = params.get("encoder")  # a tied one has unit rows
            widths = torch.ones_like(bias) if encoder is None else encoder.norm(dim=1)
            bias.copy_(widths * -NormalDist().inv_cdf(1 - self.density))
        return params, buffers


class Contestant(Protocol):
    """Something that takes a step on a batch `[B, d]`."""

    def step(self, batch: Tensor) -> Any: ...


class Trainer(Contestant, Protocol):
    """A contestant that trains."""

    def losses(self) -> Tensor:
        """The total of each member in the last step, float64 `[K]`."""
        ...

    def members(self) -> list[Tensors]:
        """The params of each member."""
        ...


class Ensemble:
    """Ours: one `FunctionalEnsemble` for each dictionary size."""

    def __init__(
        self, shape: Shape, members: int, device: torch.device, kernel: Kernel, lr: float = LR
    ) -> None:
        initial, sizes = shape.initial(members), shape.sizes(members)
        self._places = [[i for i in range(members) if sizes[i] == n] for n in sorted(set(sizes))]
        self.ensembles = [
            FunctionalEnsemble.from_members(
                resolve(shape.signature),
                [initial[i] for i in places],
                lr=lr,
                device=device,
                batch_size=shape.batch,
                kernel=kernel,
            )
            for places in self._places
        ]

    def step(self, batch: Tensor) -> None:
        for ensemble in self.ensembles:
            ensemble.step(batch)

    def losses(self) -> Tensor:
        """The mean total of each member since the last call, float64 `[K]`."""
        found = torch.cat([ensemble.tally.means()["loss"] for ensemble in self.ensembles])
        for ensemble in self.ensembles:
            ensemble.tally.reset()
        return found[self._order()]

    def members(self) -> list[Tensors]:
        stacked = [params for e in self.ensembles for params, _ in e.members()]
        return [stacked[i] for i in self._order().tolist()]

    def settle(self, batch: Tensor) -> None:
        """Let `auto` choose kernels, which it does after some steps: on a few rows, and forget."""
        for _ in range(EVERY):
            self.step(batch[:LOOK])
        for ensemble in self.ensembles:
            ensemble.tally.reset()

    def active(self) -> float:
        """The share of all features that were active in a row, since the last `losses`."""
        used = sum(float(ensemble.tally.means()["l0"].sum()) for ensemble in self.ensembles)
        return used / sum(len(params["decoder"]) for params in self.members())

    def sparse_members(self) -> int:
        """How many members take the sparse kernel now."""
        return sum(int(ensemble.kernels.is_sparse.sum()) for ensemble in self.ensembles)

    def _order(self) -> Tensor:
        return torch.tensor([i for places in self._places for i in places]).argsort()


class Loop:
    """Single models one after the other: autograd and `torch.optim.Adam(fused=True)` for each.

    With `compiled`, the loss (and so its backward pass) goes through `torch.compile`: one
    compiled function for all members of a dictionary size.
    """

    def __init__(
        self,
        shape: Shape,
        members: int,
        device: torch.device,
        *,
        compiled: bool = False,
        lr: float = LR,
    ) -> None:
        self._models = [
            (_to(params, device, grad=True), _to(buffers, device))
            for params, buffers in shape.initial(members)
        ]
        self._adams = [
            torch.optim.Adam(params.values(), lr=lr, fused=True) for params, _ in self._models
        ]
        self._loss: Callable[..., Any] = resolve(shape.signature).loss
        if compiled:
            self._loss = torch.compile(self._loss, dynamic=False)
        self._last: list[Tensor] = []

    def step(self, batch: Tensor) -> None:
        last = []
        for (params, buffers), adam in zip(self._models, self._adams, strict=True):
            adam.zero_grad(set_to_none=True)
            total, _ = self._loss(params, buffers, batch)
            total.backward()
            adam.step()
            last.append(total.detach())
        self._last = last

    def losses(self) -> Tensor:
        return torch.stack(self._last).double()

    def members(self) -> list[Tensors]:
        return [{name: t.detach() for name, t in params.items()} for params, _ in self._models]


class DenseLimit:
    """The bare matrix products of a step, into arrays that are there already, and nothing else."""

    def __init__(self, shape: Shape, members: int, device: torch.device) -> None:
        self._weights = [
            tuple(torch.randn(n, shape.d, device=device) / shape.d**0.5 for _ in "ED")
            for n in shape.sizes(members)
        ]
        self._room = {
            n: {
                "code": torch.empty(shape.batch, n, device=device),
                "d_code": torch.empty(shape.batch, n, device=device),
                "weight": torch.empty(n, shape.d, device=device),
            }
            for n in set(shape.sizes(members))
        }
        self._residual = torch.empty(shape.batch, shape.d, device=device)

    def step(self, batch: Tensor) -> None:
        for encoder, decoder in self._weights:
            room, residual = self._room[encoder.shape[0]], self._residual
            torch.mm(batch, encoder.mT, out=room["code"])
            torch.mm(room["code"], decoder, out=residual)
            torch.mm(residual, decoder.mT, out=room["d_code"])
            torch.mm(room["code"].mT, residual, out=room["weight"])
            torch.mm(room["d_code"].mT, batch, out=room["weight"])


class SquareProduct:
    """One product of square matrices that are too large for overheads to matter."""

    def __init__(self, device: torch.device) -> None:
        self.size = 8192 if device.type == "cuda" else 1536
        self._left = torch.randn(self.size, self.size, device=device)
        self._right = torch.randn(self.size, self.size, device=device)
        self._out = torch.empty_like(self._left)

    @property
    def flop(self) -> int:
        return 2 * self.size**3

    def step(self, batch: Tensor) -> None:
        torch.mm(self._left, self._right, out=self._out)


KERNELS: tuple[Kernel, ...] = ("auto", "dense", "sparse", "generic")
LOOPS = ("loop", "compiled")
TRAINERS: dict[str, Callable[..., Trainer]] = {
    **{kernel: partial(Ensemble, kernel=kernel) for kernel in KERNELS},
    "loop": Loop,
    "compiled": partial(Loop, compiled=True),
}
"""By name; called with a shape, a number of members, a device, and `lr` if it is not `LR`."""


def _to(tensors: Tensors, device: torch.device, grad: bool = False) -> Tensors:
    return {
        name: tensor.to(device, copy=True).requires_grad_(grad) for name, tensor in tensors.items()
    }
