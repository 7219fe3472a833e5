"""The logit lens: which tokens a direction of the residual stream promotes and suppresses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.errors import UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_BLOCK_VALUES = 1 << 24  # logits held at once

# Hook points whose values are the residual stream itself, and those that are added to it.
_STREAM = re.compile(
    r"blocks\.\d+\.(hook_(resid_(pre|mid|post)|in|out)|ln[12]\.hook_in)|ln_final\.hook_in"
)
_WRITTEN = re.compile(
    r"blocks\.\d+\.(hook_(mlp|attn)_out|(mlp|attn)\.hook_out|mlp\.out\.hook_out|attn\.o\.hook_out)"
    r"|hook_(pos_)?embed|(pos_)?embed\.hook_out"
)


class Ranked(NamedTuple):
    """Tokens per direction, the strongest first.

    Shapes: ids and values `[n, k]`, on the CPU; tokens n lists of k strings.
    """

    ids: Tensor
    values: Tensor  # change of the logit
    tokens: list[list[str]]


class Effect(NamedTuple):
    """What directions do to the logits: the tokens with the largest and the smallest change."""

    promoted: Ranked
    suppressed: Ranked


class Head:
    """The end of a model: the final norm and the unembedding, called without firing hooks.

    Args:
        bridge: from `load_model`.

    Raises:
        UserError: the unembedding does not read the residual stream (it has another width).
    """

    def __init__(self, bridge: TransformerBridge) -> None:
        self.weight: Tensor = bridge.unembed.W_U.detach()  # [d_model, d_vocab]
        self.bias: Tensor = bridge.unembed.b_U.detach()
        self.cap = float(getattr(bridge.cfg, "output_logits_soft_cap", -1.0) or -1.0)
        norm = getattr(bridge, "ln_final", None)  # a few models have none
        self._norm: Any = None if norm is None else norm.original_component
        self.width = int(bridge.cfg.d_model)
        if self.weight.shape[0] != self.width:
            raise UserError(
                "This model's unembedding does not read the residual stream.",
                found=f"an unembedding of width {self.weight.shape[0]}",
                allowed=f"the residual stream's width, {self.width}",
            )
        # Models pad their vocabulary; the rows behind the tokenizer's last token mean nothing.
        self.d_vocab = min(self.weight.shape[1], len(bridge.tokenizer))

    def norm(self, rows: Tensor) -> Tensor:
        """The final norm, LayerNorm or RMSNorm, of rows `[..., d_model]`."""
        rows = rows.to(self.weight)
        return rows if self._norm is None else self._norm(rows)

    def logits(self, rows: Tensor) -> Tensor:
        """The logits of residual streams `[..., d_model] -> [..., d_vocab]`, soft cap included."""
        logits = _at_least_float32(self.norm(rows) @ self.weight + self.bias)
        return self.cap * torch.tanh(logits / self.cap) if self.cap > 0 else logits

    def effect(self, directions: Tensor) -> Tensor:
        """unembed(norm(v)) - unembed(norm(0)) `[n, d_model] -> [n, tokens of the tokenizer]`."""
        change = self.norm(directions) - self.norm(torch.zeros_like(directions[:1]))
        return _at_least_float32(change @ self.weight[:, : self.d_vocab])


@torch.no_grad()
def logit_lens(
    bridge: TransformerBridge, directions: Tensor, k: int = 10, hook: str | None = None
) -> Effect:
    """The tokens that each direction promotes and suppresses, through norm and unembedding.

        effect(v) = unembed(norm(v)) - unembed(norm(0)) = (norm(v) - norm(0)) W_U

    The difference is taken so that what is no part of the direction drops out: the bias of the
    final norm (norm(0) for a LayerNorm, 0 for an RMSNorm) and that of the unembedding. They would
    put the same frequent tokens on every list. Since the norm divides by the row's size, v and
    2 v have the same effect (down to the norm's epsilon): values rank the tokens of one feature,
    they are not the effect of one unit of its code in a context. A soft cap or a factor on the
    final logits is left out; it keeps the order. Only tokens that the tokenizer knows are
    listed, not the padding of the vocabulary. A direction of zeros has the
    effect 0 on all. (nostalgebraist, "interpreting GPT: the logit lens", 2020)

    A block of directions at a time: the logits of all features and tokens are never held at once.

    Args:
        bridge: from `load_model`.
        directions: `[n, d_model]`, such as `directions(sae)`.
        k: tokens on each side.
        hook: the point that the directions write to, to be checked; none if that is known.

    Raises:
        UserError: directions that are not of the residual stream, or a k outside the vocabulary.
    """
    head = Head(bridge)
    check_written(bridge, directions, hook)
    if not 1 <= k <= head.d_vocab:
        raise UserError(
            "k is outside the vocabulary.", found=str(k), allowed=f"1 to {head.d_vocab}"
        )
    parts: list[tuple[Tensor, ...]] = []
    for block in directions.split(max(1, _BLOCK_VALUES // head.d_vocab)):
        effect = head.effect(block)
        up, down = effect.topk(k), effect.topk(k, largest=False)
        parts.append((up.indices.cpu(), up.values.cpu(), down.indices.cpu(), down.values.cpu()))
    ids_up, up_values, ids_down, down_values = map(torch.cat, zip(*parts, strict=True))
    strings = _Strings(bridge.tokenizer)
    return Effect(
        Ranked(ids_up, up_values, strings.of(ids_up)),
        Ranked(ids_down, down_values, strings.of(ids_down)),
    )


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def is_stream(hook: str) -> bool:
    """Whether a hook point's values are the residual stream."""
    return _STREAM.fullmatch(hook) is not None


def stream_of(hook: str) -> str:
    """The stream that what a layer writes is added to: for a tuned lens, which reads streams."""
    return re.sub(r"hook_(mlp|attn)_out$", _added_to, hook)


def _added_to(match: re.Match[str]) -> str:
    return "hook_resid_post" if match[1] == "mlp" else "hook_resid_mid"


def is_written(hook: str) -> bool:
    """Whether a hook point's values are the residual stream, or are added to it."""
    return is_stream(hook) or _WRITTEN.fullmatch(hook) is not None


def check_written(bridge: TransformerBridge, directions: Tensor, hook: str | None) -> None:
    """See that directions `[n, d]` are such as are added to the residual stream.

    Raises:
        UserError: another width, or a hook whose values are no part of the stream.
    """
    width = int(bridge.cfg.d_model)
    fits = directions.ndim == 2 and directions.shape[1] == width
    if fits and (hook is None or is_written(hook)):
        return
    found = f"directions {list(directions.shape)}" + (f" of {hook}" if hook else "")
    raise UserError(
        "These directions are not of the residual stream, which is all that the final norm and "
        "the unembedding read.",
        where=hook,
        found=found,
        allowed=f"[n, {width}] of a residual stream or of what a layer adds to it, such as "
        "blocks.0.hook_resid_post, hook_mlp_out or hook_attn_out",
        next_step="carry them to the stream through the layer's own output matrix (an MLP's hidden "
        "values: directions @ W_out; heads: directions @ W_O), or use an SAE at the layer's output",
    )


class _Strings:
    """Tokens as text, each decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.known = tokenizer, dict[int, str]()

    def of(self, ids: Tensor) -> list[list[str]]:
        for token in ids.unique().tolist():
            if token not in self.known:
                self.known[token] = self.tokenizer.decode([token])
        return [[self.known[token] for token in row] for row in ids.tolist()]
