"""The evaluation again, slowly: one context and one member at a time, through transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_sae.lm.load import EMBEDDED_FOLDER
from ensemble_sae.lm.text import Text

RESID, MLP = "blocks.2.hook_resid_pre", "blocks.2.hook_mlp_out"


def transformers_model() -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(EMBEDDED_FOLDER).eval()


@contextmanager
def replaced(model: Any, values: dict[str, Tensor]) -> Iterator[None]:
    """Block 2 reads other rows, or its MLP gives others."""
    block = model.transformer.h[2]
    handles = []
    if RESID in values:
        new = values[RESID]
        handles.append(block.register_forward_pre_hook(lambda m, args: (new, *args[1:])))
    if MLP in values:
        handles.append(block.mlp.register_forward_hook(lambda *_: values[MLP]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def values_of(model: Any, context: Tensor) -> dict[str, Tensor]:
    """What the model has at the two points, `[1, T, 128]`."""
    found: dict[str, Tensor] = {}
    block = model.transformer.h[2]
    handles = [
        block.register_forward_pre_hook(lambda m, args: found.update({RESID: args[0]})),
        block.mlp.register_forward_hook(lambda m, args, out: found.update({MLP: out})),
    ]
    model(context[None])
    for handle in handles:
        handle.remove()
    return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@dataclass
class Sums:
    """What is seen token by token: (position, token, value) of every quantity."""

    ce: list[tuple[int, int, float]] = field(default_factory=list)
    kl: list[tuple[int, int, float]] = field(default_factory=list)
    error: list[tuple[int, int, float]] = field(default_factory=list)
    variance: list[tuple[int, int, float]] = field(default_factory=list)
    l0: list[tuple[int, int, float]] = field(default_factory=list)

    def mean(self, name: str, keep: Any = lambda position, token: True) -> float:
        """Over the tokens that are kept; "fvu" is a ratio of sums. NaN where there is none."""
        if name == "fvu":
            over, under = (
                sum(v for p, t, v in rows if keep(p, t)) for rows in (self.error, self.variance)
            )
            return over / under if under else math.nan
        values = [v for p, t, v in getattr(self, name) if keep(p, t)]
        return sum(values) / len(values) if values else math.nan


@torch.no_grad()
def evaluate(
    model: Any,
    text: Text,
    points: tuple[tuple[str, ...], tuple[str, ...]],
    reconstruct: Any,
    means: dict[str, Tensor],
    scales: dict[str, float],
) -> Sums:
    """What becomes of the model with others in the place of its rows.

    Args:
        points: that are read, and that are replaced.
        reconstruct: rows `[T, d]` -> (rows that replace them `[T, d']`, code `[T, n]`).
        means, scales: of each point: the mean row, and the unit that errors are measured in.
    """
    reads, gives = points
    sums = Sums()
    for context, is_text, is_read in zip(text.tokens, text.is_text, text.is_read, strict=True):
        own = values_of(model, context)
        new, code = reconstruct(torch.cat([own[p][0] for p in reads], -1))
        given, at = {}, 0
        for point in gives:
            width = own[point].shape[-1]
            given[point] = own[point].clone()
            given[point][0, is_read] = new[is_read, at : at + width]
            at += width
        with replaced(model, given):
            changed = log_softmax(model(context[None]).logits[0].double().numpy())
        clean = log_softmax(model(context[None]).logits[0].double().numpy())
        for t, token in enumerate(context.tolist()):
            if t + 1 < len(context) and is_text[t + 1]:
                sums.ce.append((t, token, -changed[t, int(context[t + 1])]))
                kl = (np.exp(clean[t]) * (clean[t] - changed[t])).sum()
                sums.kl.append((t, token, kl))
            if is_read[t]:
                error = variance = 0.0
                for point in gives:
                    row = own[point][0, t].double()
                    off = (given[point][0, t].double() - row) / scales[point]
                    error += float(off.square().sum())
                    off = (means[point].double() - row) / scales[point]
                    variance += float(off.square().sum())
                sums.error.append((t, token, error))
                sums.variance.append((t, token, variance))
                sums.l0.append((t, token, float((code[t] != 0).sum())))
    return sums
