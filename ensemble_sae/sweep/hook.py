"""A member's hook: checked against the stores there are, and against its signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble_sae.data.hooks import Hook
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.signatures import BUILTIN


def member_hook(hook: Any, widths: Mapping[str, int], where: str) -> Hook:
    """What a member names: a hook point that has a store, or an expression over such points.

    Args:
        hook: the value in the sweep; None is the only point there is.
        widths: of every hook point that has a store.
        where: the key, for messages.

    Raises:
        UserError: nothing named where there are several; no expression; a point without a store.
    """
    if hook is None and len(widths) == 1:
        return Hook(tuple(widths))
    if hook is None:
        raise UserError(
            "There are stores of several hook points: say which.",
            where=where,
            allowed=", ".join(widths),
            next_step='hook = [...] in [grid], or hook = "..." in [activations]',
        )
    parsed = Hook.parse(hook, where) if isinstance(hook, str) and hook else None
    missing = next((p for p in parsed.points if p not in widths), None) if parsed else repr(hook)
    if parsed is None or missing is not None:
        raise UserError(
            "There is no store of this hook point.",
            where=where,
            found=repr(missing) if parsed else repr(hook),
            allowed=nearest(str(missing), widths),
        )
    return parsed


def refuse_another_kind(hook: Hook, name: str, signature: type[Any], where: str) -> None:
    """Some signatures predict a target, some need several inputs; most do neither.

    They say so by `TAKES_TARGET = True` and `LEAST_POINTS = 2`.

    Raises:
        UserError: a target that the signature does not take, or lacks; too few inputs.
    """
    predicts: bool = getattr(signature, "TAKES_TARGET", False)
    least: int = getattr(signature, "LEAST_POINTS", 1)
    if hook.targets and not predicts:
        what = f"The signature {name!r} reconstructs what it reads: it takes no target."
        takers = [known for known, its in BUILTIN.items() if getattr(its, "TAKES_TARGET", False)]
        takers.append("a class of your own with TAKES_TARGET = True")
        allowed = f'hook = "A" or "A + B", without "->"; a target is for {" or ".join(takers)}'
    elif predicts and not hook.targets:
        what = f"The signature {name!r} predicts a target: the hook has to name it."
        allowed = 'hook = "A -> B": rows of A are read, those of B are predicted'
    elif len(hook.inputs) < least:
        what = f"The signature {name!r} reads {least} hook points or more."
        allowed = f'hook = "{" + ".join("ABCDEFGH"[:least])}"'
    else:
        return
    raise UserError(what, where=where, found=repr(hook.name), allowed=allowed)
