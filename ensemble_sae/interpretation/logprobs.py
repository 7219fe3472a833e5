"""Expected values out of the probabilities that an endpoint gives beside its words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def expected_numbers(
    text: str, content: Iterable[Any], largest: int
) -> tuple[tuple[int, float], ...]:
    """Where numbers stand in an answer, and what they are on average.

    At a token that is a number from 0 to `largest`, the expected value over those alternatives
    that are such numbers, with their probabilities scaled to sum to 1: sum p_v v / sum p_v (Bills
    et al. 2023, the section on simulation). A number that the model writes in several tokens (10
    as 1 and 0) has no entry.

    Args:
        text: the answer.
        content: its tokens, with `token`, `bytes` (None where the server does not tell), and
            `top_logprobs`, alternatives with `token` and `logprob`.
        largest: the largest number that counts.

    Returns:
        (place of the number's first character in the text, expected value), ascending; nothing if
        the tokens do not spell the text.
    """
    tokens = list(content)
    pieces = [bytes(t.bytes) if t.bytes is not None else t.token.encode() for t in tokens]
    whole = b"".join(pieces)
    if whole != text.encode():
        return ()
    found, start = [], 0
    for at, (token, piece) in enumerate(zip(tokens, pieces, strict=True)):
        following = pieces[at + 1][:1] if at + 1 < len(pieces) else b""
        value = _expected(token, largest) if not following.isdigit() else None
        if value is not None:
            spaces = len(piece) - len(piece.lstrip())
            found.append((len(whole[: start + spaces].decode(errors="ignore")), value))
        start += len(piece)
    return tuple(found)


def _expected(token: Any, largest: int) -> float | None:
    if _number(token.token, largest) is None:
        return None
    chances: dict[int, float] = {}
    for other in token.top_logprobs or ():
        value = _number(other.token, largest)
        if value is not None:
            chances[value] = chances.get(value, 0.0) + math.exp(other.logprob)
    total = sum(chances.values())
    return sum(v * p for v, p in chances.items()) / total if total > 0 else None


def _number(token: str, largest: int) -> int | None:
    """The whole number that a token is, spaces aside."""
    word = token.strip()
    if not (word.isascii() and word.isdigit() and str(int(word)) == word):
        return None
    return int(word) if int(word) <= largest else None
