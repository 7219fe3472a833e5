"""The pass over the text: the model once per batch, then from the hook on once per source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.data.units import AnyUnits
from ensemble_sae.evaluation.sources import Source
from ensemble_sae.evaluation.tally import Tally
from ensemble_sae.lm.losses import Clean, losses
from ensemble_sae.lm.members import apart, joined
from ensemble_sae.lm.splice import Forward
from ensemble_sae.lm.text import Text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LOGITS = {"cpu": 2**22, "cuda": 2**28}  # numbers at a time: what a cache holds, or a GPU's memory


class Reference(NamedTuple):
    """What errors at a hook are measured against.

    Attributes:
        mean: the mean row of the measured points `[d]`, in the model's units.
        units: those that members were trained in.
    """

    mean: Tensor
    units: AnyUnits


class Pass:
    """Evaluates sources on contexts; can stop after any batch and go on from there.

    Args:
        references: by the hook's name.

    Attributes:
        contexts: how many there are; size: of a batch; batches: how many there are.
    """

    def __init__(
        self,
        bridge: TransformerBridge,
        text: Text,
        sources: Sequence[Source],
        references: dict[str, Reference],
        tally: Tally,
    ) -> None:
        self._bridge, self._text, self.tally = bridge, text, tally
        self._sources, self._references = sources, references
        self._points = points_of_sources(sources)
        self.size = batch_size(bridge, text)  # contexts whose logits fit
        self.contexts = len(text.tokens)
        self.batches = -(-self.contexts // self.size)

    @torch.no_grad()
    def batch(self, start: int, on_source: Callable[[], None] = lambda: None) -> None:
        """Evaluate everything on one batch, of the contexts from `start` on."""
        part = self._text.part(start, start + self.size)
        forward = Forward(self._bridge, part.tokens, self._points)
        tokens, is_read = forward.tokens, part.is_read.to(forward.tokens.device)
        is_predicted = torch.zeros_like(is_read)
        is_predicted[:, :-1] = part.is_text[:, 1:].to(is_read.device)
        self.tally.count(tokens, is_predicted, is_read)
        clean = Clean.of(forward.logits)
        ce, kl = losses(forward.logits, tokens, clean)
        self.tally.add(0, {"ce": ce * is_predicted, "kl": kl * is_predicted}, tokens)
        waiting = _Waiting(self._together(part))
        variances = {name: self._variance(name, forward, is_read) for name in self._references}
        row = 1
        for source in self._sources:
            rows = joined(source.hook.inputs, forward.values)
            name, points = source.hook.name, source.hook.measured
            truth = joined(points, forward.values)
            for replaced, l0 in source.replacements(rows):
                given = torch.where(is_read[..., None], replaced.to(truth.dtype), truth)
                error = self._square(name, given, truth)
                found = {"error": error, "l0": l0 * is_read, "variance": variances[name]}
                self.tally.add(row, found, tokens)
                waiting.add(row, apart(points, given, forward.values))
                row += 1
                self._lose(waiting, forward, clean, is_predicted)
            on_source()
        self._lose(waiting, forward, clean, is_predicted, rest=True)

    def _lose(
        self,
        waiting: _Waiting,
        forward: Forward,
        clean: Clean,
        is_predicted: Tensor,
        rest: bool = False,
    ) -> None:
        """Run the model on from the hook for what waits, once it is enough or the rest."""
        for sources, values in waiting.take(rest):
            logits = forward.with_values(values)
            for row, own in zip(sources, logits.split(len(forward.tokens)), strict=True):
                ce, kl = losses(own, forward.tokens, clean)
                found = {"ce": ce * is_predicted, "kl": kl * is_predicted}
                self.tally.add(row, found, forward.tokens)

    def _together(self, part: Text) -> int:
        """Sources that the model goes on with at once: a short text leaves room for several."""
        return max(1, self.size // len(part.tokens))

    def _variance(self, name: str, forward: Forward, is_read: Tensor) -> Tensor:
        """What the mean row's squared error is, `[B, T]`, zero where nothing is replaced."""
        reference = self._references[name]
        source = next(source for source in self._sources if source.hook.name == name)
        truth = joined(source.hook.measured, forward.values)
        return self._square(name, reference.mean.to(truth), truth) * is_read

    def _square(self, name: str, given: Tensor, truth: Tensor) -> Tensor:
        """||given - truth||^2 in the units of the training, `[B, T]`."""
        units = self._references[name].units
        return (units.enter(given) - units.enter(truth)).square().sum(-1)


class _Waiting:
    """Replacements of several sources, until there are enough to go on with together.

    Only sources that replace the same points can go together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: dict[tuple[str, ...], list[int]] = {}
        self._values: dict[tuple[str, ...], list[dict[str, Tensor]]] = {}

    def add(self, row: int, values: dict[str, Tensor]) -> None:
        points = tuple(values)
        self._rows.setdefault(points, []).append(row)
        self._values.setdefault(points, []).append(values)

    def take(self, rest: bool) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """What is enough, or all there is: rows of the tally, and values one after the other."""
        for points in list(self._rows):
            if rest or len(self._rows[points]) >= self._most:
                values = self._values.pop(points)
                yield self._rows.pop(points), {p: torch.cat([v[p] for v in values]) for p in points}


@torch.no_grad()
def mean_rows(bridge: TransformerBridge, text: Text, points: Sequence[str]) -> dict[str, Tensor]:
    """The mean of each hook point over the rows that members read, float32 `[d]`."""
    sums: dict[str, Tensor] = {}
    for part in batches(text, batch_size(bridge, text)):
        values = Forward(bridge, part.tokens, points, logits=False).values
        for point in points:
            kept = values[point][part.is_read.to(values[point].device)]
            sums[point] = sums.get(point, 0.0) + kept.double().sum(0)
    count = int(text.is_read.sum())
    return {point: (total / count).float() for point, total in sums.items()}


def batches(text: Text, size: int) -> Iterator[Text]:
    """The text, so many contexts at a time."""
    for start in range(0, len(text.tokens), size):
        yield text.part(start, start + size)


def batch_size(bridge: TransformerBridge, text: Text) -> int:
    """Contexts whose logits fit: at least one."""
    device = torch.device(bridge.cfg.device).type
    most = LOGITS.get(device, LOGITS["cuda"])
    return max(1, most // (text.tokens.shape[1] * bridge.cfg.d_vocab))


def points_of_sources(sources: Sequence[Source]) -> list[str]:
    """Every hook point that a source reads or replaces, each once."""
    return list(dict.fromkeys(point for source in sources for point in source.hook.points))
