"""The values of one member, checked: numbers, sizes, hyper-parameters, dynamics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from ensemble_sae.config.dynamics import DYNAMICS, Dynamics
from ensemble_sae.config.strict import validate
from ensemble_sae.errors import UserError, nearest
from ensemble_sae.signatures.limits import ANY, CHOICES, LIMITS, PENALTIES, POSITIVE, Limit
from ensemble_sae.sweep.member import Value
from ensemble_sae.sweep.schema import Train

MOST_FEATURES = 2**31


def number(value: Any, limit: Limit, where: str) -> float:
    """A float within its limit."""
    if not limit.allows(_in_range(value)):
        raise UserError(
            "A value is not allowed.", where=where, found=repr(value)[:80], allowed=limit.words
        )
    return float(value)


def seed_of(value: Any, where: str) -> int:
    """A member's seed."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(
            "A value is not allowed.", where=where, found=repr(value), allowed="a whole number >= 0"
        )
    return value


def features(values: Mapping[str, Any], d_activation: int, where: str) -> int:
    """n_dict, given as such or as a ratio."""
    if ("n_dict" in values) == ("dict_ratio" in values):
        raise UserError(
            "The dictionary size is given once.",
            where=where,
            found="both n_dict and dict_ratio" if "n_dict" in values else "neither",
            allowed="dict_ratio = [...] (times d_activation), or n_dict = [...] (features)",
        )
    if "n_dict" in values:
        n_dict = values["n_dict"]
        whole = isinstance(n_dict, int) and not isinstance(n_dict, bool)
        if not whole or not 1 <= n_dict <= MOST_FEATURES:
            raise UserError(
                "A value is not allowed.",
                where=f"{where}.n_dict",
                found=repr(n_dict)[:80],
                allowed=f"a whole number from 1 to {MOST_FEATURES:,}",
            )
        return n_dict
    ratio = number(values["dict_ratio"], POSITIVE, f"{where}.dict_ratio")
    n_dict = min(ratio * d_activation, 2.0 * MOST_FEATURES)  # an inf cannot be rounded
    if not 1 <= round(n_dict) <= MOST_FEATURES:
        raise UserError(
            f"This ratio gives {ratio * d_activation:g} features at d_activation {d_activation}.",
            where=f"{where}.dict_ratio",
            found=f"{ratio:g}",
            allowed=f"{1 / d_activation:g} to {MOST_FEATURES / d_activation:g}",
        )
    return round(n_dict)


def own_values(
    signature: type[Any],
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    shape: tuple[int, int],
    where: str,
) -> dict[str, Value]:
    """The signature's hyper-parameters: those given, the others' defaults.

    Args:
        shape: d_activation and n_dict, on which some limits depend.
    """
    limits = LIMITS | getattr(signature, "limits", lambda d, n: {})(*shape)
    chosen: dict[str, Value] = {}
    for name, default in defaults.items():
        value = values.get(name, default)
        if value is Parameter.empty:
            raise UserError(f"The signature {values['signature']!r} needs {name!r}.", where=where)
        if name not in values and name in limits and not limits[name].allows(value):
            value = type(default)(min(limits[name].high, value))  # a default for larger shapes
        chosen[name] = _own(name, value, default, limits.get(name), f"{where}.{name}")
    return chosen


def dynamics_of(
    values: Mapping[str, Any], train: Train, own: Mapping[str, Value], n_dict: int, where: str
) -> dict[str, Any]:
    """How a member is trained over time: `[train]`, with what the member says itself.

    Raises:
        UserError: a value or a combination that is not allowed, or that has no effect on this
            signature.
    """
    shared = {name: getattr(train, name) for name in DYNAMICS}
    given = {name: values[name] for name in DYNAMICS if name in values}
    found = validate(Dynamics, shared | given, where, below=".")
    penalty = next((name for name in PENALTIES if name in own), None)
    if found.target_l0 is not None:
        if found.target_l0 > n_dict:
            raise UserError(
                "A target L0 above the number of features cannot be reached.",
                where=f"{where}.target_l0",
                found=f"{found.target_l0:g}",
                allowed=f"up to {n_dict:,}",
            )
        if penalty is None or not own[penalty]:
            raise UserError(
                "A target L0 is reached by moving a penalty; this member has none.",
                where=f"{where}.target_l0",
                found=f"{values['signature']} with {penalty or 'neither l1 nor l0_coefficient'}"
                + (" = 0" if penalty else ""),
                allowed="a signature with l1 or l0_coefficient, above 0",
            )
    rest = found.model_dump()
    return {name: rest[name] for name in rest if name not in ("lr", "grad_clip")}


def _own(name: str, value: Any, default: Any, limit: Limit | None, where: str) -> Value:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(
                "A value is not allowed.",
                where=where,
                found=repr(value)[:80],
                allowed="true, false",
            )
        return value
    if isinstance(default, str):
        allowed = CHOICES.get(name)
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise UserError(
                "A value is not allowed.",
                where=where,
                found=repr(value)[:80],
                allowed=nearest(str(value), allowed) if allowed else "text",
            )
        return value
    found = number(value, limit or ANY, where)
    if isinstance(default, int):
        return int(number(found, Limit("a whole number", whole=True), where))
    return found


def _in_range(value: Any) -> Any:
    """The value, or an infinity where it is a whole number too large for a float."""
    try:
        float(value if type(value) in (int, float) else 0)
    except OverflowError:
        return math.inf
    return value
