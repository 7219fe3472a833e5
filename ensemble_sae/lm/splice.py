"""A language model run once, then from a hook point on with other values in their place.

The model's own code runs in both: blocks before the hook point are not computed again, they give
what they gave the first time. So this holds for every architecture of blocks in a row, whatever
masks or rotary embeddings it makes around them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.lm.load import check_hooks, check_length, run_hooks, run_with, value_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_AFTER_ALL_BLOCKS = ("ln_final", "unembed", "hook_unembed")


class Forward:
    """One forward of a batch of contexts: values of hook points, logits, and the way to go on.

    No gradients.

    Args:
        bridge: from `load_model`.
        tokens: `[B, T]` ids, used as they are.
        points: hook points that will be read and replaced.
        logits: whether the end of the model is wanted too, not only the hook points' values.

    Attributes:
        values: of each hook point, `[B, T, d]`.
        logits: `[B, T, d_vocab]`, of the model as it is; empty if not wanted.

    Raises:
        UserError: an unknown hook point, one that a forward does not reach, or contexts longer
            than the model's.
    """

    @torch.no_grad()
    def __init__(
        self,
        bridge: TransformerBridge,
        tokens: Tensor,
        points: Sequence[str],
        *,
        logits: bool = True,
    ) -> None:
        check_hooks(bridge, points)
        check_length(bridge, tokens)
        self._bridge = bridge
        self.tokens = tokens.to(bridge.cfg.device)
        self.logits = torch.empty(0)
        self.values: dict[str, Tensor] = {}
        self._first = min(_block_of(bridge, point) for point in points)
        self._entered: Any = None  # what the block before the first of the points gave
        with self._listening():
            if logits:
                self.logits = run_with(bridge, self.tokens, self._readers(points), "logits")
            else:
                self.values = run_hooks(bridge, self.tokens, points)
        if missing := [point for point in points if point not in self.values]:
            raise UserError(
                "The language model's forward pass never reaches this hook.",
                where=f"hooks: {missing[0]}",
                next_step="choose another, such as blocks.0.hook_resid_post",
            )

    @torch.no_grad()
    def with_values(self, values: Mapping[str, Tensor], contexts: Tensor | None = None) -> Tensor:
        """The logits `[C, T, d_vocab]` with other values at hook points.

        Args:
            values: of some of the points, `[C, T, d]` each.
            contexts: int64 `[C]`: the row of the batch that each of the values is for. By default
                all rows in their order, or if C = k B so k times.
        """
        batch = self.tokens.shape[0]
        if contexts is None:
            copies = next(iter(values.values())).shape[0] // batch
            contexts = torch.arange(batch).repeat(copies)
        contexts = contexts.to(self.tokens.device)
        hooks = [(point, _put(value)) for point, value in values.items()]
        with self._replaying(contexts):
            logits: Tensor = run_with(self._bridge, self.tokens[contexts], hooks, "logits")
        return logits

    def _readers(self, points: Sequence[str]) -> list[tuple[str, Callable[..., None]]]:
        def reader(point: str) -> Callable[..., None]:
            return lambda value, hook: self.values.update({point: value_of(value)})

        return [(point, reader(point)) for point in points]

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Note what the block before the first hook point gives."""
        if self._first == 0:
            yield
            return

        def note(module: Any, inputs: Any, output: Any) -> None:
            self._entered = output

        handle = self._bridge.blocks[self._first - 1].register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _replaying(self, contexts: Tensor) -> Iterator[None]:
        """Blocks before the first hook point give what the last of them gave: the rest is the same.

        An attribute of the instance goes before the method of its class, and goes away again.
        """
        blocks = list(self._bridge.blocks)[: self._first]
        given = _rows(self._entered, self.tokens.shape[0], contexts)
        for block in blocks:
            object.__setattr__(block, "forward", lambda *args, **kwargs: given)
        try:
            yield
        finally:
            for block in blocks:
                object.__delattr__(block, "forward")


def _block_of(bridge: TransformerBridge, point: str) -> int:
    """The block that a hook point is in; 0 for those before all of them, their number for after."""
    if match := _BLOCK.match(point):
        return int(match[1])
    return len(bridge.blocks) if point.startswith(_AFTER_ALL_BLOCKS) else 0


def _put(value: Tensor) -> Callable[..., Any]:
    def put(old: Any, hook: Any) -> Any:
        return (value, *old[1:]) if isinstance(old, tuple) else value

    return put


def _rows(given: Any, batch: int, contexts: Tensor) -> Any:
    """What a block gave, for some rows of its batch."""
    if isinstance(given, tuple):
        return tuple(_rows(part, batch, contexts) for part in given)
    if isinstance(given, Tensor) and given.shape[:1] == (batch,):
        return given[contexts]
    return given
