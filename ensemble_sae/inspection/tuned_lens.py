"""The tuned lens: an affine translator per layer into what the final norm expects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import open_tensors, write_tensors
from ensemble_sae.inspection.lens import Effect, Head, check_written, is_stream, logit_lens
from ensemble_sae.lm.harvest_model import fingerprint
from ensemble_sae.lm.load import EMBEDDED, EMBEDDED_FOLDER, check_hooks, run_hooks, run_with
from ensemble_sae.randomness import permutation

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_KIND = "ensemble-sae tuned lens 1"
_BLOCK_VALUES = 1 << 24  # logits held at once
_CONTEXTS = 8  # run together when nothing is learned


@dataclass(frozen=True)
class Step:
    """Where training is.

    Attributes:
        step: steps done, of `steps`.
        kl: per hook the mean KL(final || lens) of the step's batch, in nats.
    """

    step: int
    steps: int
    kl: dict[str, float]


@dataclass(frozen=True)
class TunedLens:
    """Translators h -> h + A h + b of residual streams into the basis of the last one.

    lens(h) = unembed(norm(h + A h + b)). With A = 0, b = 0 this is the logit lens.

    (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens",
    section 3)

    Attributes:
        model: `fingerprint` of the model it was made for.
        translators: per hook A `[d_model, d_model]` and b `[d_model]`.
        model_name: what that model was loaded as, for people; empty if that is not known.
    """

    model: str
    translators: dict[str, tuple[Tensor, Tensor]]
    model_name: str = ""

    @classmethod
    def identity(cls, bridge: TransformerBridge, hooks: str | Sequence[str]) -> TunedLens:
        """Translators that change nothing: the logit lens, and where training starts.

        Args:
            hooks: of the residual stream; a single name is one hook.

        Raises:
            UserError: an unknown hook, or one whose values are not the residual stream.
        """
        hooks = [hooks] if isinstance(hooks, str) else hooks
        check_hooks(bridge, hooks)
        for hook in hooks:
            if not is_stream(hook):
                raise UserError(
                    "A tuned lens reads the residual stream, which this hook is not.",
                    where=f"hooks: {hook}",
                    allowed="blocks.L.hook_resid_pre, hook_resid_mid or hook_resid_post",
                )
        like, d = _values(bridge), int(bridge.cfg.d_model)
        made = {hook: (like.new_zeros(d, d), like.new_zeros(d)) for hook in hooks}
        return cls(fingerprint(bridge), made, _name(bridge))

    @classmethod
    def train(
        cls,
        bridge: TransformerBridge,
        contexts: Tensor,
        hooks: str | Sequence[str],
        *,
        keep: Tensor | None = None,
        steps: int = 250,
        batch_size: int = 8,
        lr: float = 1e-3,
        seed: int = 0,
        on_progress: Callable[[Step], None] | None = None,
    ) -> TunedLens:
        """Learn the translators of all hooks side by side; the model stays as it is.

        Minimises, per hook, the mean over tokens of KL(p || q) = sum_t p_t (log p_t - log q_t),
        p the model's own distribution and q the lens's. Starts from the identity. The paper uses
        SGD with momentum, batches of 2^18 tokens and weight decay; here Adam with a learning
        rate that falls linearly to 0, on small batches, without decay. Every draw follows from
        the seed.

        Args:
            contexts: `[C, context]`, tokens, such as the harvest's blocks have.
            hooks: of the residual stream, such as `blocks.2.hook_resid_pre`; one name or several.
            keep: bool `[C, context]`, the tokens that count; all if there is none.
            steps: batches of `batch_size` contexts; the contexts are gone through in a new order
                as often as that takes.

        Raises:
            UserError: an unknown hook, one that is not the residual stream, no contexts, or a
                model whose logits are not unembed(norm(last residual stream)).
        """
        hooks = [hooks] if isinstance(hooks, str) else hooks
        lens = cls.identity(bridge, hooks)
        if not len(contexts) or not hooks:
            raise UserError("There are no contexts, or no hooks, to train a tuned lens on.")
        head, last = Head(bridge), _last(bridge)
        _check_head(bridge, head, contexts[:1])
        learners = {hook: _Learner(*pair) for hook, pair in lens.translators.items()}
        adam = torch.optim.Adam([part for own in learners.values() for part in own.parts], lr=lr)
        for step, chosen in enumerate(_batches(len(contexts), batch_size, steps, seed)):
            points = list(dict.fromkeys([*hooks, last]))
            streams = run_hooks(bridge, contexts[chosen].long(), points)
            kept = _kept(streams[last], None if keep is None else keep[chosen])
            final = streams[last][kept]
            adam.param_groups[0]["lr"] = lr * (1 - step / steps)
            kl = {h: own.learn(head, streams[h][kept], final) for h, own in learners.items()}
            adam.step()
            if on_progress is not None:
                on_progress(Step(step + 1, steps, kl))
        made = {hook: own.pair for hook, own in learners.items()}
        return cls(lens.model, made, lens.model_name)

    def check(self, bridge: TransformerBridge, hook: str) -> None:
        """See, before a long pass, that `logit_lens` can be asked for this model and hook.

        Raises:
            UserError: another model, or a hook that this lens has no translator for.
        """
        self._check_model(bridge)
        self._of(hook)

    def translate(self, hook: str, rows: Tensor) -> Tensor:
        """h + A h + b of residual streams `[..., d_model]`.

        Raises:
            UserError: a hook that this lens has no translator for.
        """
        matrix, bias = self._of(hook)
        return _translated(rows.to(matrix), matrix, bias)

    def logits(self, bridge: TransformerBridge, hook: str, rows: Tensor) -> Tensor:
        """What the lens predicts of residual streams: `[..., d_model] -> [..., d_vocab]`.

        Raises:
            UserError: another model, or a hook that this lens has no translator for.
        """
        self._check_model(bridge)
        return Head(bridge).logits(self.translate(hook, rows))

    def logit_lens(
        self, bridge: TransformerBridge, directions: Tensor, hook: str, k: int = 10
    ) -> Effect:
        """The tokens that directions promote and suppress: unembed(norm(v + A v)) - ... of 0.

        The logit lens of what the translator makes of the direction; b is no part of it and
        drops out as the other constants do.

        Args:
            directions: `[n, d_model]`.
            hook: the translator. Of what a layer adds, take the stream that it is added to:
                `blocks.2.hook_resid_post` for directions at `blocks.2.hook_mlp_out`.

        Raises:
            UserError: as `logits` and `lens.logit_lens`.
        """
        self.check(bridge, hook)
        check_written(bridge, directions, None)
        matrix, _ = self._of(hook)
        rows = directions.to(matrix)
        return logit_lens(bridge, rows + rows @ matrix.mT, k)

    @torch.no_grad()
    def kl(
        self, bridge: TransformerBridge, contexts: Tensor, keep: Tensor | None = None
    ) -> dict[str, float]:
        """Mean KL(final || lens) per hook on contexts `[C, context]`, in nats per token."""
        self._check_model(bridge)
        head, last = Head(bridge), _last(bridge)
        totals, count = dict.fromkeys(self.translators, 0.0), 0
        for chosen in torch.arange(len(contexts)).split(_CONTEXTS):
            hooks = list(dict.fromkeys([*self.translators, last]))
            streams = run_hooks(bridge, contexts[chosen].long(), hooks)
            kept = _kept(streams[last], None if keep is None else keep[chosen])
            count += int(kept.sum())
            for hook, pair in self.translators.items():
                blocks = _losses(head, pair, streams[hook][kept], streams[last][kept])
                totals[hook] += sum(float(loss) for loss in blocks)
        return {hook: total / max(1, count) for hook, total in totals.items()}

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the hooks and the model's fingerprint in its header."""
        tensors = {
            f"{i}.{name}": part
            for i, pair in enumerate(self.translators.values())
            for name, part in zip("Ab", pair, strict=True)
        }
        hooks = json.dumps(list(self.translators))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        about = {"model": self.model, "model_name": self.model_name, "hooks": hooks}
        write_tensors(Path(path), tensors, {"kind": _KIND, **about})

    @classmethod
    def load(cls, path: str | Path, bridge: TransformerBridge) -> TunedLens:
        """Read what `save` wrote, to be used with this model.

        Raises:
            UserError: no such file, or a lens of another model.
            CorruptFile: a damaged file, or one that holds no tuned lens.
        """
        with open_tensors(Path(path)) as file:
            about = file.metadata() or {}
            if about.get("kind") != _KIND:
                raise CorruptFile(
                    "This file holds no tuned lens.",
                    where=str(path),
                    found=about.get("kind") or "a safetensors file without that kind",
                    allowed=_KIND,
                )
            made = _read(file, about, str(path))
        like, width = _values(bridge), int(bridge.cfg.d_model)
        for hook, (matrix, _) in made.items():
            if len(matrix) != width:
                raise UserError(
                    "This tuned lens is for a model of another width.",
                    where=f"{path}: {hook}",
                    found=f"translators of width {len(matrix)}",
                    allowed=f"the model's residual stream, {width}",
                )
        placed = {h: (a.to(like), b.to(like)) for h, (a, b) in made.items()}
        lens = cls(about["model"], placed, about.get("model_name", ""))
        lens._check_model(bridge, str(path))
        return lens

    def _of(self, hook: str) -> tuple[Tensor, Tensor]:
        if hook not in self.translators:
            raise UserError(
                "The tuned lens has no translator for this hook.",
                found=hook,
                allowed=", ".join(self.translators),
            )
        return self.translators[hook]

    def _check_model(self, bridge: TransformerBridge, where: str | None = None) -> None:
        if (other := fingerprint(bridge)) != self.model:
            raise UserError(
                "This tuned lens was made for another model.",
                where=where,
                found=f"{_name(bridge)}, fingerprint {other}",
                allowed=f"{self.model_name or 'the model it was made for'}, fingerprint "
                f"{self.model}: the same weights in the same dtype",
                next_step="train one for this model: TunedLens.train(bridge, contexts, hooks)",
            )


def _values(bridge: TransformerBridge) -> Tensor:
    """An empty tensor of the device and the dtype of translators: float32 at least."""
    dtype = torch.promote_types(bridge.unembed.W_U.dtype, torch.float32)
    return torch.empty(0, dtype=dtype, device=bridge.cfg.device)


def _last(bridge: TransformerBridge) -> str:
    return f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"


def _name(bridge: TransformerBridge) -> str:
    """What a model was loaded as."""
    name = str(bridge.cfg.model_name)
    return EMBEDDED if name == str(EMBEDDED_FOLDER) else name


def _translated(rows: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    return rows + rows @ matrix.mT + bias


def _kept(stream: Tensor, keep: Tensor | None) -> Tensor:
    """Which of the rows `[batch, context, d]` count: bool `[batch, context]`."""
    if keep is None:
        return torch.ones(stream.shape[:2], dtype=torch.bool, device=stream.device)
    return keep.to(stream.device)


def _batches(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """The contexts of each step: orders of all of them, one after the other, cut into batches."""
    epoch, waiting = 0, torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < size:
            order = permutation(count, seed, "tuned lens", epoch)
            waiting, epoch = torch.cat([waiting, order]), epoch + 1
        yield waiting[:size]
        waiting = waiting[size:]


def _losses(head: Head, pair: Sequence[Tensor], rows: Tensor, final: Tensor) -> Iterator[Tensor]:
    """The KL(final || lens) summed over a block of rows `[n, d_model]` at a time."""
    size = max(1, _BLOCK_VALUES // head.weight.shape[1])
    for some, ends in zip(rows.split(size), final.split(size), strict=True):
        lens = head.logits(_translated(some.to(pair[0]), *pair)).log_softmax(-1)
        with torch.no_grad():
            truth = head.logits(ends).log_softmax(-1)
        yield kl_div(lens, truth, reduction="sum", log_target=True)


class _Learner:
    """The translator of one hook while it is learned.

    b is learned in units of the hook's typical value, as A is by itself: so that one learning
    rate does for streams of any size.
    """

    def __init__(self, matrix: Tensor, bias: Tensor) -> None:
        self.parts = [matrix.clone(), bias.clone()]
        self.size: Tensor | None = None  # of the hook's values, seen in the first batch

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """A and b."""
        matrix, bias = self.parts
        return matrix, bias if self.size is None else bias * self.size

    @torch.enable_grad()
    def learn(self, head: Head, rows: Tensor, final: Tensor) -> float:
        """Set the gradient of the mean KL of rows `[n, d_model]`; return that mean."""
        if self.size is None:
            self.size = rows.abs().median().to(self.parts[0])
        pair = [part.detach().requires_grad_() for part in self.pair]
        sums, total = [torch.zeros_like(part) for part in pair], 0.0
        for loss in _losses(head, pair, rows, final):
            total += float(loss.detach())
            # Of A and b alone: the model's weights get no gradient.
            for into, gradient in zip(sums, torch.autograd.grad(loss, pair), strict=True):
                into += gradient / len(rows)
        self.parts[0].grad, self.parts[1].grad = sums[0], sums[1] * self.size
        return total / max(1, len(rows))


@torch.no_grad()
def _check_head(bridge: TransformerBridge, head: Head, context: Tensor) -> None:
    """See that the model's logits are those of its final norm and its unembedding."""
    last = _last(bridge)
    found = head.logits(run_hooks(bridge, context.long(), [last])[last])
    expected = run_with(bridge, context.long(), [], "logits")
    away = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not away < 0.02:  # bfloat16 rounds at 0.004
        raise UserError(
            "This model does more between its last residual stream and its logits than a final "
            "norm, an unembedding and a soft cap: a tuned lens would learn to imitate that.",
            found=f"logits that differ by {away:.1%} of the largest",
        )


def _read(file: Any, about: dict[str, str], where: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The translators of an open file, whole and finite."""
    from safetensors import SafetensorError

    made = {}
    try:
        for i, hook in enumerate(json.loads(about["hooks"])):
            matrix, bias = (file.get_tensor(f"{i}.{name}") for name in "Ab")
            if matrix.shape != (len(bias), len(bias)):
                raise ValueError(f"A {list(matrix.shape)}, b {list(bias.shape)}")
            if not (matrix.isfinite().all() and bias.isfinite().all()):
                raise ValueError("values that are not finite")
            made[hook] = (matrix, bias)
        if "model" not in about:
            raise ValueError("no fingerprint of a model")
    except (KeyError, ValueError, TypeError, OSError, SafetensorError) as error:
        raise CorruptFile(
            "The tuned lens in this file is damaged.", where=where, found=str(error)
        ) from None
    return made
