"""Tokens as text that fits on one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

Texts = Sequence[str] | Callable[[int], str]  # the text of each token id

EMPTY = "(empty)"  # a token whose text is nothing, such as a special one


def visible(text: str) -> str:
    """The text with what does not print (line breaks, tabs) as escapes; never nothing.

    Spaces stay: they tell a word from the rest of one.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown or EMPTY


def reader(texts: Texts) -> Callable[[int], str]:
    """Token id to visible text, each looked up once."""
    find = texts if callable(texts) else texts.__getitem__

    @cache
    def read(token: int) -> str:
        return visible(find(token))

    return read
