"""TOML -> frozen pydantic models, where every unknown key is an error that names its near miss."""

from __future__ import annotations

import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ensemble_sae.errors import UserError, nearest


class Strict(BaseModel):
    """The base of every schema: frozen, no unknown keys, no text or bool for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class Refused(UserError, ValueError):
    """What a validator raises: pydantic passes a ValueError on with the place of its field.

    `where`: a key below that place, for a validator of a whole table.
    """


Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file, or say where it stops being one."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("No such file.", where=str(path)) from None
    except OSError as error:
        raise UserError("This file cannot be read.", where=str(path), found=str(error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError("This file is not valid TOML.", where=str(path), found=str(error)) from None


def validate(model: type[Model], values: Any, where: str, below: str = ": ") -> Model:
    """Build `model` from `values`; the first problem becomes a `UserError` at `where: key`.

    Args:
        below: what stands between `where` and the key: a dot where `where` ends in a key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _explain(problem, model, where, below) from None


def _explain(problem: Any, model: type[BaseModel], where: str, below: str) -> UserError:
    location = [str(part) for part in problem["loc"]]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, Refused) and cause.where:
        location.append(cause.where)
    place = f"{where}{below}{'.'.join(location)}" if location else where
    if problem["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        known = owner.model_fields if owner else {}
        return UserError(
            f"Unknown key {location[-1]!r}.",
            where=place,
            found=repr(problem["input"]),
            allowed=nearest(location[-1], known),
        )
    if problem["type"] == "missing":
        return UserError(f"The key {location[-1]!r} is required.", where=place)
    if isinstance(cause, Refused):
        return UserError(
            cause.what,
            where=place,
            found=cause.found,
            allowed=cause.allowed,
            next_step=cause.next_step,
        )
    return UserError(
        "A value is not allowed.",
        where=place,
        found=repr(problem["input"])[:80],
        allowed=problem["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
    )


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    """The model that owns the key below `location`, through lists and optionals."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None:
            return None
        if part.isdigit():
            continue
        field = current.model_fields.get(part)
        current = _inner_model(field.annotation) if field else current
    return current


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, tuple, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            found = _inner_model(argument)
            if found:
                return found
    return None
