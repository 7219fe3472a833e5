"""The requests of the protocol: what is sent for one feature, known before anything is sent."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ensemble_sae.errors import UserError
from ensemble_sae.interpretation import prompts
from ensemble_sae.interpretation.answers import Answer
from ensemble_sae.interpretation.fragments import Split

EXPLANATION_TOKENS = 60  # the published limit
ALTERNATIVES = 15  # how many the published code asks probabilities of
_PIECES = re.compile(r" ?[^\W\d_]+|\d{1,3}|[^\w\s]{1,2}|_|\s")


@dataclass(frozen=True)
class Protocol:
    """Who is asked, and how.

    Attributes:
        explainer, simulator: names of models, as the endpoint knows them.
        shown, scored: numbers of fragments (`fragments.split`).
        fragments_per_request: how many fragments one simulation is asked for. 1, as published:
            each is foretold without the others; more saves most of the tokens that are sent, but
            none of those that come back, and long answers go astray more often.
        attempts: how often a question is asked whose answer cannot be read.
        logprobs: ask for probabilities, to simulate expected values as published; an endpoint that
            has none gives the numbers themselves.
        temperature: of both models. Published: 1 for the explainer; 0 here, so that answers can be
            asked for again.

    Raises:
        UserError: a number out of range, a model without a name.
    """

    explainer: str
    simulator: str
    shown: int = 5
    scored: int = 5
    fragments_per_request: int = 1
    attempts: int = 2
    logprobs: bool = True
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not (self.explainer and self.simulator):
            raise UserError(
                "The protocol needs two models.",
                found=f"explainer {self.explainer!r}, simulator {self.simulator!r}",
                allowed="names that the endpoint knows; they may be the same",
            )
        if min(self.fragments_per_request, self.attempts) < 1 or self.temperature < 0:
            raise UserError(
                "The models cannot be asked like this.",
                found=f"fragments_per_request {self.fragments_per_request}, attempts "
                f"{self.attempts}, temperature {self.temperature}",
                allowed="at least 1, at least 1, at least 0",
            )


@dataclass(frozen=True)
class Question:
    """Something to ask, and how its answer is read.

    Attributes:
        request: the body to send at the first, second, ... attempt (from 0): each is another one,
            so that an unreadable answer in the cache does not answer the next attempt.
        read: the answer's meaning; raises `prompts.Unreadable`.
        expected: an answer of the length to expect.
    """

    request: Callable[[int], dict[str, Any]]
    read: Callable[[Answer], Any]
    expected: str


def to_explain(protocol: Protocol, split: Split, read: Callable[[int], str]) -> Question | None:
    """What does a feature respond to? None if it responds to nothing that is shown.

    Args:
        protocol: the settings.
        split: the fragments of that feature alone (F = 1).
        read: token id to visible text.
    """
    shown = split.shown
    there = (shown.fragments[0] >= 0).nonzero()[:, 0].tolist()
    largest = float(shown.activations[0, there].max()) if there else 0.0
    if largest <= 0:
        return None
    fragments = [
        (
            [read(int(token)) for token in shown.tokens[0, place].tolist()],
            prompts.written(shown.activations[0, place], largest),
        )
        for place in there
    ]
    messages = prompts.explain(fragments)

    def request(attempt: int) -> dict[str, Any]:
        # Four times the published length: some models count what they think.
        return _request(protocol, protocol.explainer, messages, 4 * EXPLANATION_TOKENS, attempt)

    return Question(request, prompts.read_explanation, "word " * EXPLANATION_TOKENS)


class Simulations(NamedTuple):
    """The questions that simulate a feature, and where their answers belong.

    Attributes:
        questions: each about some fragments.
        places: of each question, (0 for top or 1 for random, number) of its fragments.
    """

    questions: list[Question]
    places: list[list[tuple[int, int]]]


def to_simulate(
    protocol: Protocol, split: Split, read: Callable[[int], str], meaning: str
) -> Simulations:
    """How strongly does a feature respond to the tokens of its scored fragments?

    Top and random fragments take turns, so that their order in a request tells nothing.

    Args:
        protocol: the settings.
        split: the fragments of that feature alone (F = 1).
        read: token id to visible text.
        meaning: the explanation.
    """
    kinds = (split.top, split.random)
    places = [
        (kind, number)
        for number in range(protocol.scored)
        for kind, contexts in enumerate(kinds)
        if contexts.fragments[0, number] >= 0
    ]
    step = protocol.fragments_per_request
    batches = [places[i : i + step] for i in range(0, len(places), step)]
    texts = [
        [[read(t) for t in kinds[kind].tokens[0, number].tolist()] for kind, number in batch]
        for batch in batches
    ]
    return Simulations([_simulation(protocol, meaning, own) for own in texts], batches)


def _simulation(protocol: Protocol, meaning: str, fragments: list[list[str]]) -> Question:
    expected = prompts.zeros(fragments)
    limit = 2 * rough_tokens(expected) + EXPLANATION_TOKENS

    def request(attempt: int) -> dict[str, Any]:
        messages = prompts.simulate(meaning, fragments, again=attempt > 0)
        body = _request(protocol, protocol.simulator, messages, limit, attempt)
        if protocol.logprobs:
            body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        return body

    tokens = [token for fragment in fragments for token in fragment]
    return Question(request, partial(prompts.read_simulation, tokens=tokens), expected)


def _request(
    protocol: Protocol, model: str, messages: list[dict[str, str]], limit: int, attempt: int
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": limit,
        "temperature": protocol.temperature,
    }
    return body | ({"seed": attempt} if attempt else {})


def rough_tokens(text: str) -> int:
    """About how many tokens a language model makes of a text.

    A word of n letters counts as n / 6, at least one; a space before a word belongs to it; digits
    count as one by threes, other signs by twos, tabs and line breaks each. In prose that is about
    a token for four characters; in lists of tokens and numbers it is far more, since every token is
    a line of its own.
    """
    return sum(max(1, math.ceil(len(piece) / 6)) for piece in _PIECES.findall(text))
