"""What features do to a language model: ablated, steered along, and which tokens they hang on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.inspection.examples import Examples
from ensemble_sae.lm.splice import Forward
from ensemble_sae.run.sae import Sae

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LOGITS = 2**22  # numbers at a time

OnProgress = Callable[[int, int], None]


class Ablation(NamedTuple):
    """F features, each taken out where it fires: x - c_f v_f, v_f what one unit of it adds.

    Means over the tokens of the shown fragments on which the feature is active; NaN if there is
    none.

    Attributes:
        effect: log p(x_{t+1}) without the feature minus with it, nats `[F]`: negative where the
            feature helps.
        kl: divergence from the model with the feature, nats `[F]`.
        lowered, raised: the k tokens whose log-probability changes most, int64 `[F, k]`.
        lowered_by, raised_by: by how much in the mean, nats `[F, k]`.
    """

    effect: Tensor
    kl: Tensor
    lowered: Tensor
    lowered_by: Tensor
    raised: Tensor
    raised_by: Tensor


class Steering(NamedTuple):
    """F features added at every token: x + a_f v_f, with a_f a strength in units of the code.

    Attributes:
        kl: divergence from the model as it is, mean over tokens, nats `[F]`.
        raised: the k tokens whose log-probability rises most, int64 `[F, k]`.
        raised_by: by how much in the mean, nats `[F, k]`.
    """

    kl: Tensor
    raised: Tensor
    raised_by: Tensor


@torch.no_grad()
def ablation(
    bridge: TransformerBridge,
    point: str,
    directions: Tensor,
    examples: Examples,
    *,
    fragments: int = 5,
    k: int = 5,
    on_progress: OnProgress = lambda done, total: None,
) -> Ablation:
    """Take each feature out of the fragments on which it is strongest.

    Source: Cunningham et al. 2023, "Sparse Autoencoders Find Highly Interpretable Features in
    Language Models", section 5 (effect of features on the output).

    Args:
        point: where the features write.
        directions: v of the same features, `[F, d]`: see `directions.directions`.
        examples: of the same features; `fragments` of each one's top ones are used.
    """
    tokens = examples.top.tokens[:, :fragments]
    code = examples.top.activations[:, :fragments]
    _, count, width = tokens.shape
    room = _Room(len(tokens), k)
    for features in _chunks(bridge, len(tokens), count * width, on_progress):
        own = code[features].flatten(0, 1)
        forward = Forward(bridge, tokens[features].flatten(0, 1).long(), [point])
        value = forward.values[point]
        each = directions[features].to(value).repeat_interleave(count, 0)
        without = value - own.to(value)[..., None] * each[:, None]
        logits = forward.with_values({point: without})
        active = own.to(value.device) != 0
        active[:, -1] = False  # nothing is known to follow
        row, token = active.nonzero(as_tuple=True)
        after = forward.tokens[row, token + 1]
        room.add(features, row // count, after, forward.logits[row, token], logits[row, token])
    return Ablation(*room.result())


@torch.no_grad()
def steering(
    bridge: TransformerBridge,
    point: str,
    directions: Tensor,
    strengths: Tensor,
    tokens: Tensor,
    *,
    k: int = 5,
    on_progress: OnProgress = lambda done, total: None,
) -> Steering:
    """Add each feature to every token of some contexts, and see what becomes more likely.

    Args:
        directions: v `[F, d]`. strengths: a `[F]`, in units of the code.
        tokens: contexts `[C, T]`, the same for all features.
    """
    forward = Forward(bridge, tokens, [point])
    value = forward.values[point]
    room = _Room(len(directions), k)
    before, after = forward.logits[:, :-1].flatten(0, 1), forward.tokens[:, 1:].flatten()
    for features in _chunks(bridge, len(directions), tokens.numel(), on_progress):
        added = (directions[features] * strengths[features, None]).to(value)
        steered = value[None] + added[:, None, None]
        logits = forward.with_values({point: steered.flatten(0, 1)})
        for feature, own in zip(features, logits.split(len(tokens)), strict=True):
            owner = torch.zeros_like(after)
            room.add(feature[None], owner, after, before, own[:, :-1].flatten(0, 1))
    _, kl, _, _, raised, raised_by = room.result()
    return Steering(kl, raised, raised_by)


@torch.no_grad()
def dropping(
    bridge: TransformerBridge,
    sae: Sae,
    point: str,
    examples: Examples,
    *,
    before: int = 16,
    on_progress: OnProgress = lambda done, total: None,
) -> Tensor:
    """How much less a feature fires at its strongest token without one of the tokens before it.

    Of each feature's top fragment, the tokens before the strongest one are left out one at a time,
    BOS never; what follows moves up by one. Returns the change of the activation relative to it,
    `[F, before]`, the token just before the strongest one last; 0 where there is no such token,
    NaN for a feature without a fragment. -1: the feature is gone.
    """
    tokens, code = examples.top.tokens[:, 0].long(), examples.top.activations[:, 0]
    width = tokens.shape[1]
    found = torch.zeros(len(tokens), before)
    found[examples.top.fragments[:, 0] < 0] = torch.nan
    for features in _chunks(bridge, len(tokens), before * width, on_progress, logits=False):
        jobs, contexts = [], []
        for feature in features.tolist():
            peak = int(code[feature].argmax())
            for back in range(1, min(before, peak - 1) + 1):
                own = tokens[feature]
                gone = peak - back
                contexts.append(torch.cat([own[:gone], own[gone + 1 :], own[:1]]))
                jobs.append((feature, before - back, peak - 1))
        if not jobs:
            continue
        value = Forward(bridge, torch.stack(contexts), [point], logits=False).values[point]
        feature, place, last = map(torch.tensor, zip(*jobs, strict=True))
        rows = value[torch.arange(len(jobs)), last]
        now = sae.encode(rows).cpu()[torch.arange(len(jobs)), examples.features[feature]]
        was = code[feature].amax(1)
        found[feature, place] = torch.where(was > 0, now / was - 1, torch.nan)
    return found


class _Room:
    """What was measured of F features, one chunk after the other."""

    def __init__(self, features: int, k: int) -> None:
        self._k = k
        self._means = torch.full((2, features), torch.nan)
        self._ids = torch.zeros(2, features, k, dtype=torch.int64)
        self._values = torch.full((2, features, k), torch.nan)

    def add(
        self, features: Tensor, owner: Tensor, after: Tensor, before: Tensor, now: Tensor
    ) -> None:
        """Compare predictions of A tokens without and with a feature of theirs.

        Args:
            features: of this chunk, `[G]`. owner: the place among them of each token's, `[A]`.
            after: the token that follows, `[A]`. before, now: logits `[A, V]`.
        """
        was, is_now = torch.log_softmax(before.float(), -1), torch.log_softmax(now.float(), -1)
        change = is_now - was
        effect = change.gather(1, after[:, None])[:, 0]
        kl = -(was.exp() * change).sum(1)
        count = torch.bincount(owner, minlength=len(features)).to(change)
        for row, values in enumerate((effect, kl)):
            # 0 / 0, where a feature has no token, is NaN
            total = torch.zeros_like(count).index_add_(0, owner, values)
            self._means[row, features] = (total / count).cpu()
        mean = change.new_zeros(len(features), change.shape[1]).index_add_(0, owner, change)
        mean /= count[:, None]
        there = (count > 0).cpu()
        for row, largest in enumerate((False, True)):
            values, ids = mean.nan_to_num(0).topk(self._k, largest=largest)
            self._ids[row, features] = ids.cpu()
            self._values[row, features] = torch.where(there[:, None], values.cpu(), torch.nan)

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Effect, KL; tokens lowered and by how much; tokens raised and by how much."""
        effect, kl = self._means
        return effect, kl, self._ids[0], self._values[0], self._ids[1], self._values[1]


def _chunks(
    bridge: TransformerBridge,
    features: int,
    tokens: int,
    on_progress: OnProgress,
    logits: bool = True,
) -> Iterator[Tensor]:
    """Places of features that fit at a time: `tokens` tokens for each."""
    each = tokens * (bridge.cfg.d_vocab if logits else 4 * bridge.cfg.d_model)
    device = torch.device(bridge.cfg.device).type
    most = LOGITS * (64 if device == "cuda" else 1)
    size = max(1, most // each)
    for start in range(0, features, size):
        chunk = torch.arange(start, min(features, start + size))
        yield chunk
        on_progress(start + len(chunk), features)
