"""What language models are asked, and what is read out of their answers.

Two questions (Bills et al. 2023, "Language models can explain neurons in language models", the
sections on step 1 and step 2): what does this feature respond to, given tokens and activations;
and how strongly does it respond to each of these tokens, given such an explanation. Activations
are whole numbers from 0 to 10: floor(10 relu(c) / max c), the maximum over the fragments shown.
The wording is this project's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ensemble_sae.interpretation.alignment import align
from ensemble_sae.interpretation.answers import Answer

LARGEST = 10  # of the activations that are written
UNKNOWN = "unknown"
SPARSE = 0.2  # below this share of nonzero activations, they are repeated without the zeros
LEAST_SAME = 0.8  # share of tokens that an answer must repeat as they were
LEAST_TOLD = 0.95  # share of tokens that it must give a number for

Request = dict[str, Any]  # the body of a chat completion

_EXPLAIN = f"""You study single units of a neural network. A unit responds to something particular \
in a text. You are shown short texts, one token per line: the token, a tab, and how strongly the \
unit responds to it, from 0 (not at all) to {LARGEST}.
Say in one short sentence what the unit responds to: what the tokens with high numbers, or the \
words before them, have in common. Describe it; do not merely list tokens. Answer with that \
sentence alone, beginning with "{{start}}"."""
_START = "The unit responds to"
_SIMULATE = f"""You foretell how strongly a unit of a neural network responds to each token of a \
text, from 0 (not at all, as for most tokens) to {LARGEST}. You are told what the unit responds \
to. Each line of the text is a token, a tab and the word {UNKNOWN}. Answer with the same lines in \
the same order, with a whole number from 0 to {LARGEST} in place of each {UNKNOWN}, and with \
nothing else."""
_EXAMPLE = ("words for animals", ["The", " black", " dog", " barked", "."], [0, 1, 10, 2, 0])
_REMINDER = "Answer with exactly {n} lines, each a token as above, a tab and a number."
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_WITHOUT_TAB = re.compile(r"(.*?)[ ]*[:|=→ ][ ]*(\d+(?:\.\d+)?)$")


class Unreadable(Exception):
    """An answer that does not hold what was asked for."""


def written(activations: Tensor, largest: float) -> list[int]:
    """Activations of a fragment as whole numbers: floor(10 relu(c) / largest), at most 10."""
    if largest <= 0:
        return [0] * len(activations)
    scaled = (LARGEST * activations.double().clamp(min=0) / largest).floor()
    return [int(number) for number in scaled.clamp(max=LARGEST).tolist()]


def explain(fragments: Sequence[tuple[Sequence[str], Sequence[int]]]) -> list[Request]:
    """The messages that ask for an explanation of tokens and written activations."""
    numbers = [number for _, own in fragments for number in own]
    shown = _texts([_lines(tokens, own) for tokens, own in fragments])
    if sum(number > 0 for number in numbers) < SPARSE * len(numbers):
        kept = [[(t, n) for t, n in zip(*own, strict=True) if n > 0] for own in fragments]
        again = _texts(["\n".join(f"{t}\t{n}" for t, n in own) for own in kept if own])
        shown += f"\n\nThe same, only the tokens with a response:\n{again}"
    return [
        {"role": "system", "content": _EXPLAIN.format(start=_START)},
        {"role": "user", "content": shown},
    ]


def simulate(explanation: str, fragments: Sequence[Sequence[str]], again: bool) -> list[Request]:
    """The messages that ask for the activations on the tokens of one or more fragments.

    Args:
        explanation: what the feature responds to.
        fragments: the tokens of each.
        again: whether an answer to this has been unreadable before.
    """
    meaning, tokens, numbers = _EXAMPLE
    question = _asked(explanation, fragments)
    if again:
        n = sum(len(fragment) for fragment in fragments)
        question += "\n\n" + _REMINDER.format(n=n)
    return [
        {"role": "system", "content": _SIMULATE},
        {"role": "user", "content": _asked(meaning, [tokens])},
        {"role": "assistant", "content": _lines(tokens, numbers)},
        {"role": "user", "content": question},
    ]


def zeros(fragments: Sequence[Sequence[str]]) -> str:
    """An answer of the length to expect."""
    return "\n".join(_lines(tokens, [0] * len(tokens)) for tokens in fragments)


def read_explanation(answer: Answer) -> str:
    """The explanation: the first paragraph of the answer, without how it was told to begin.

    Raises:
        Unreadable: there is none.
    """
    text = _THOUGHTS.sub("", answer.text).strip()
    text = text.split("\n\n")[0].replace("\n", " ").strip().strip("\"'*").strip()
    if text.lower().startswith(_START.lower()):
        text = text[len(_START) :].strip()
    text = text.removesuffix(".").strip(" :")
    if not text:
        raise Unreadable(f"the explanation is empty{_cut_off(answer)}")
    return text


def read_simulation(answer: Answer, tokens: Sequence[str]) -> list[float]:
    """The number told of each token, 0 to 10.

    Lines are aligned with the tokens, so that one that is left out or altered shifts nothing. Where
    the endpoint gave probabilities, the number is their expected value.

    Args:
        answer: lines of a token, a tab and a number; what else there is (fences, marks, a word
            before) is passed over.
        tokens: those that were asked about.

    Raises:
        Unreadable: less than 80% of the tokens are repeated as they were, or less than 95% have a
            number from 0 to 10.
    """
    lines = _numbers(answer)
    expected, told = [t.strip() for t in tokens], [t.strip() for t, _ in lines]
    places = align(expected, told)
    same = sum(p is not None and t == told[p] for t, p in zip(expected, places, strict=True))
    found = [None if place is None else lines[place][1] for place in places]
    numbers = [n if n is not None and 0 <= n <= LARGEST else None for n in found]
    n_told = sum(number is not None for number in numbers)
    if same < LEAST_SAME * len(tokens) or n_told < LEAST_TOLD * len(tokens):
        raise Unreadable(
            f"the simulation does not follow the text: of {len(tokens)} tokens {same} are as they "
            f"were and {n_told} have a number{_cut_off(answer)}"
        )
    return [0.0 if number is None else number for number in numbers]


def _numbers(answer: Answer) -> list[tuple[str, float]]:
    """Token and number of each line that has both."""
    expected = dict(answer.expected)
    found, start = [], 0
    for line in answer.text.split("\n"):
        token, tab, number = line.rstrip().rpartition("\t")
        if not tab and (without := _WITHOUT_TAB.match(line.rstrip())):
            token, number = without[1], without[2]
        try:
            value = float(number)
        except ValueError:
            value = None
        if value is not None:
            place = start + len(line.rstrip()) - len(number.lstrip())
            found.append((token, expected.get(place, value)))
        start += len(line) + 1
    return found


def _asked(explanation: str, fragments: Sequence[Sequence[str]]) -> str:
    texts = [_lines(tokens, [UNKNOWN] * len(tokens)) for tokens in fragments]
    return f"{_START} {explanation}.\n\n{_texts(texts)}"


def _lines(tokens: Sequence[str], values: Sequence[object]) -> str:
    return "\n".join(f"{token}\t{value}" for token, value in zip(tokens, values, strict=True))


def _texts(texts: Sequence[str]) -> str:
    return "\n\n".join(f"Text {number}:\n{text}" for number, text in enumerate(texts, 1))


def _cut_off(answer: Answer) -> str:
    return " (it was cut off)" if answer.finish == "length" else ""
