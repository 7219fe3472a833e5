"""What a model with learned absolute positions reads: a token's embedding plus its position's.

At `HOOK` of such a model a row is a function of the token and the position alone. So all rows that
there can be are `all_resid_pres [d_vocab, n_ctx, d_model]`, made here a few tokens at a time.

Source: Chughtai and Lau 2024, "Understanding Positional Features in Layer 0 SAEs".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.errors import UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ensemble_sae.lm.text import Text

HOOK = "blocks.0.hook_resid_pre"
_PROBES = 2  # contexts in which the sum is compared with the model
_NEXT = "scores estimated from text need no embeddings: analysis.positions.sampled"


class Embeddings(NamedTuple):
    """The two summands of a row at `HOOK`.

    Attributes:
        tokens: `[V, d]`.
        positions: `[P, d]`, from position 0 on.
    """

    tokens: Tensor
    positions: Tensor

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows of some tokens `[T]` at every position, `[T, P, d]`."""
        return self.tokens[tokens][:, None] + self.positions

    def tiles(self, size: int = 2_048, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows, in order: tokens `[T]`, and theirs at every position `[T, P, d]`.

        Args:
            size: rows of a tile, T x P; at least one token's.
            every: take each so many-th token only.
        """
        ids = torch.arange(0, len(self.tokens), every, device=self.tokens.device)
        for some in ids.split(max(1, size // len(self.positions))):
            yield some, self.rows(some)

    def up_to(self, positions: int) -> Embeddings:
        """The first positions alone."""
        return Embeddings(self.tokens, self.positions[:positions])


def embeddings(bridge: TransformerBridge) -> Embeddings:
    """The embeddings of a model whose rows at `HOOK` are their sum.

    That they are is seen on a few random contexts of the model's full length.

    Raises:
        UserError: the model has no learned absolute positions (rotary ones, say), or adds
            something else to its embeddings.
    """
    positions = _table(bridge)
    tokens = bridge.W_E.detach()
    vocabulary, context = len(tokens), bridge.cfg.n_ctx
    draw = torch.Generator().manual_seed(0)
    probe = torch.randint(vocabulary, (_PROBES, context), generator=draw)
    found = _at_hook(bridge, probe)
    made = tokens[probe.to(tokens.device)] + positions
    error = float((found - made).abs().max() / found.abs().max())
    if not error < 1e-3:  # a few roundings of bfloat16; another summand is of another size
        raise UserError(
            "The rows of this model are not the sum of a token's and a position's embedding.",
            where=HOOK,
            found=f"they differ by {error:.2g} of the largest value",
            next_step=_NEXT,
        )
    return Embeddings(tokens, positions)


def rows_of_text(
    bridge: TransformerBridge, points: Sequence[str], text: Text, batch: int = 16
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The rows of a text with their tokens and positions: of any model, at any hook.

    Yields, per forward of `batch` contexts, rows `[B, d]` (of several hook points side by side),
    tokens `[B]` and positions `[B]`; only those rows that members are trained on.
    """
    from ensemble_sae.lm.load import run_hooks
    from ensemble_sae.lm.members import joined

    for start in range(0, len(text.tokens), batch):
        part = text.part(start, start + batch)
        values = joined(tuple(points), run_hooks(bridge, part.tokens, list(dict.fromkeys(points))))
        positions = torch.arange(part.tokens.shape[1]).expand_as(part.tokens)
        keep = part.is_read
        yield values[keep.to(values.device)], part.tokens[keep], positions[keep]


def _table(bridge: TransformerBridge) -> Tensor:
    """The embeddings of positions 0 to the last."""
    context = bridge.cfg.n_ctx
    try:
        # Some models' tables begin with rows that stand for no position.
        table: Tensor = bridge.W_pos.detach()[-context:]
    except AttributeError:
        kind = getattr(bridge.cfg, "positional_embedding_type", None) or "another kind"
        raise UserError(
            "This model has no learned absolute positions: its rows at the first block are the "
            "same at every position, and all of them are only the token embeddings.",
            where=HOOK,
            found=f"positional embeddings: {kind}",
            allowed="a model with a table of positions, such as GPT-2 or the embedded one",
            next_step=_NEXT,
        ) from None
    return table


def _at_hook(bridge: TransformerBridge, tokens: Tensor) -> Tensor:
    from ensemble_sae.lm.load import run_hooks

    return run_hooks(bridge, tokens, [HOOK])[HOOK]
