"""What the protocol will cost, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ensemble_sae.inspection.examples import Examples
from ensemble_sae.interpretation.answers import Answers
from ensemble_sae.interpretation.fragments import Split, split
from ensemble_sae.interpretation.prompts import Unreadable
from ensemble_sae.interpretation.questions import (
    EXPLANATION_TOKENS,
    Protocol,
    Question,
    rough_tokens,
    to_explain,
    to_simulate,
)
from ensemble_sae.lm.texts import Texts, reader


class Load(NamedTuple):
    """What one model is asked.

    Attributes:
        answered: requests that the cache answers.
        requests: requests that have to be sent.
        tokens_in, tokens_out: of those that have to be sent.
    """

    answered: int = 0
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def plus(self, other: Load) -> Load:
        """Both together."""
        return Load(*(a + b for a, b in zip(self, other, strict=True)))

    def price(self, price_in: float, price_out: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


class Estimate(NamedTuple):
    """What is asked of both models. Answers that have to be asked for again come on top."""

    explain: Load
    simulate: Load

    @property
    def total(self) -> Load:
        """Of both."""
        return self.explain.plus(self.simulate)

    def text(self, price_in: float | None = None, price_out: float | None = None) -> str:
        """A few lines for people; with money if both prices for a million tokens are given."""
        lines = []
        for name, load in (("explain", self.explain), ("simulate", self.simulate)):
            lines.append(
                f"{name + ':':<10}{load.requests:,} requests, about {load.tokens_in:,} tokens in "
                f"and {load.tokens_out:,} out; {load.answered:,} answered already"
            )
        if price_in is not None and price_out is not None:
            money = self.total.price(price_in, price_out)
            lines.append(f"{'price:':<10}about {money:,.2f}")
        return "\n".join(lines)


def estimate(
    examples: Examples,
    texts: Texts,
    protocol: Protocol,
    answers: Answers | None = None,
    count: Callable[[str], int] = rough_tokens,
) -> Estimate:
    """Count requests and tokens; asks nothing.

    Simulations depend on the explanation. Where the cache has none yet, one of 60 tokens is
    assumed, the longest published.

    Args:
        examples: of the features to be explained.
        texts: the text of every token id.
        protocol: the settings.
        answers: the cache.
        count: tokens of a text, such as `lambda text: len(tokenizer.encode(text))`.

    Raises:
        UserError: too few fragments.
    """
    answers = answers or Answers()
    parts = split(examples, shown=protocol.shown, scored=protocol.scored, fit_top=0, fit_random=0)
    read = reader(texts)
    explain, simulate = Load(), Load()
    for feature in range(len(examples.features)):
        own = Split(*(contexts.of(torch.tensor([feature])) for contexts in parts))
        question = to_explain(protocol, own, read)
        if question is None:
            continue
        load, meaning = _load(question, protocol.attempts, answers, count)
        explain = explain.plus(load)
        if load.requests == 0 and meaning is None:
            continue  # unreadable at every attempt: nothing to simulate
        assumed = "word " * EXPLANATION_TOKENS if meaning is None else str(meaning)
        for simulation in to_simulate(protocol, own, read, assumed).questions:
            simulate = simulate.plus(_load(simulation, protocol.attempts, answers, count)[0])
    return Estimate(explain, simulate)


def _load(
    question: Question, attempts: int, answers: Answers, count: Callable[[str], int]
) -> tuple[Load, object]:
    """What a question costs, and its answer's meaning if that is known."""
    for attempt in range(attempts):
        request = question.request(attempt)
        answer = answers.find(request)
        if answer is None:
            words = sum(count(message["content"]) for message in request["messages"])
            return Load(attempt, 1, words, count(question.expected)), None
        try:
            return Load(attempt + 1), question.read(answer)
        except Unreadable:
            continue
    return Load(attempts), None
