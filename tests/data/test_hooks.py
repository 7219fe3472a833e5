"""Expressions over hook points."""

from __future__ import annotations

import pytest

from ensemble_sae.data.hooks import Hook, is_plain, points_of
from ensemble_sae.errors import UserError

A, B, C = "blocks.0.hook_mlp_out", "b", "blocks.11.attn.hook_z"


@pytest.mark.parametrize(
    ("text", "inputs", "targets", "name"),
    [
        (A, (A,), (), A),
        (f"  {A} ", (A,), (), A),
        (f"{A} + {B}", (A, B), (), f"{A} + {B}"),
        (f"{B}+{A}  +{C}", (B, A, C), (), f"{B} + {A} + {C}"),
        (f"{A} -> {B}", (A,), (B,), f"{A} -> {B}"),
        (f"{A}->{A}", (A,), (A,), f"{A} -> {A}"),
        (f"{A} + {B}->{C}", (A, B), (C,), f"{A} + {B} -> {C}"),
        (f"{A} -> {B} + {C}", (A,), (B, C), f"{A} -> {B} + {C}"),
    ],
)
def test_parse(text: str, inputs: tuple[str, ...], targets: tuple[str, ...], name: str) -> None:
    hook = Hook.parse(text)
    assert (hook.inputs, hook.targets, hook.name) == (inputs, targets, name)
    assert Hook.parse(hook.name) == hook
    assert hook.points == inputs + targets
    assert hook.measured == (targets or inputs)
    assert hook.split(hook.points) == (inputs, targets)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "missing"),
        ("a +", "missing"),
        ("+ a", "missing"),
        ("a + + b", "missing"),
        ("-> a", "missing"),
        ("a ->", "missing"),
        ("->", "missing"),
        ("a -> b -> c", "one arrow"),
        ("a + b + a", "twice"),
        ("a -> b + b", "twice"),
    ],
)
def test_what_is_no_expression(text: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        Hook.parse(text, "mine.toml: grid.hook")
    assert error.value.where == "mine.toml: grid.hook"
    assert error.value.found == repr(text)
    assert "A + B -> C" in str(error.value.allowed)


def test_points_and_plain_names() -> None:
    assert points_of({"a -> b", "a + c"}) == {"a", "b", "c"}
    assert is_plain(A)
    assert not any(map(is_plain, ["", "a+b", "a->b", " a", "c++"]))
