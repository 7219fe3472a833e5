"""The schema of a sweep file. Every knob has its unit; an unknown key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ensemble_sae.config.builtin import find
from ensemble_sae.config.dynamics import Count, Dynamics, Positive
from ensemble_sae.config.start import Start
from ensemble_sae.config.strict import Refused, Strict, read_toml, validate
from ensemble_sae.errors import UserError

Kind = Literal["adam", "adamw", "radam", "rmsprop", "sgd"]
Axis = Any  # a scalar, a list, or {logspace = [a, b, n]} / {linspace = [a, b, n]}: see grid.py


class Activations(Strict):
    """Where the rows come from: a recipe (harvested if it is not there yet) or a store."""

    recipe: str | None = Field(None, description="built-in recipe name, or path to a .toml")
    store: str | None = Field(None, description="folder of a store, or of stores by hook")
    hook: str | None = Field(None, description="hook point of members that name none")
    normalise: Literal["none", "scale", "standard"] = Field(
        "none",
        description="scale: divide rows by the store's scale, so that l1 means the same everywhere;"
        " standard: take the store's mean off first",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Activations:
        if (self.recipe is None) == (self.store is None):
            raise Refused(
                "Activations come from a recipe or from a store.",
                found="both" if self.recipe else "neither",
                allowed='recipe = "embedded", or store = "path/to/folder"',
            )
        return self


class Train(Dynamics):
    """How members are trained. Keys of `Dynamics`, seed and init may also be axes of the grid."""

    batch_size: Count = Field(1024, description="rows per step")
    epochs: Count = Field(1, description="passes over the training chunks")
    optimiser: Kind = Field("adam", description="how gradients become updates")
    betas: tuple[float, float] = Field((0.9, 0.999), strict=False, description="decay rates")
    eps: Positive = Field(1e-8, description="what keeps a division finite")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="of adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    init: Any = Field("signature", description="what directions start from")
    resample_rows: Count = Field(819_200, description="rows looked at, of the chunk at hand")
    checkpoint_every: Count = Field(1, description="chunks between checkpoints")
    keep_checkpoints: Count = Field(2, description="how many of the latest are kept")
    kernel: Literal["auto", "generic", "dense", "sparse"] = Field(
        "auto", description="which gradient is used"
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="of matrix products; parameters and moments are float32"
    )
    seed: int = Field(0, ge=0, description="of the whole run")

    @field_validator("init")
    @classmethod
    def _start(cls, init: Any) -> Any:
        try:
            Start.parse(init, "init")
        except UserError as error:
            raise Refused(
                error.what,
                where=str(error.where).removeprefix("init").removeprefix("."),
                found=error.found,
                allowed=error.allowed,
                next_step=error.next_step,
            ) from None
        return init

    @model_validator(mode="after")
    def _optimiser_has(self) -> Train:
        for key, owner in (("weight_decay", "adamw"), ("momentum", "sgd")):
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and self.optimiser != owner:  # a run's sweep.json has every key
                raise Refused(
                    f"Only {owner} has a {key}.",
                    where="optimiser",
                    found=self.optimiser,
                    allowed=f'optimiser = "{owner}", or no {key}',
                )
        return self

    @field_validator("betas")
    @classmethod
    def _decay_rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise Refused("Betas are decay rates.", found=str(list(betas)), allowed="0 <= beta < 1")
        return betas


class Report(Strict):
    """What the report at the end shows beyond the members' numbers."""

    look: int = Field(
        0, ge=0, description="members along the frontier whose features it shows; needs the model"
    )
    effects: bool = Field(False, description="also ablate and steer each of their features")


class Sweep(Strict):
    """A whole sweep: `[activations]`, `[train]`, `[report]`, one or several `[[grid]]`,
    `[[members]]`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    activations: Activations
    train: Train = Field(default_factory=lambda: Train.model_validate({}))
    report: Report = Field(default_factory=lambda: Report.model_validate({}))
    grid: list[dict[str, Axis]] = Field(default_factory=list)
    members: list[dict[str, Any]] = Field(default_factory=list)

    @field_validator("grid", mode="before")
    @classmethod
    def _one_grid_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _something_to_train(self) -> Sweep:
        if not self.grid and not self.members:
            raise Refused("A sweep needs members.", allowed="a [grid], or [[members]], or both")
        return self


def load_sweep(
    name: str | Path, settings: tuple[str, ...] = (), quick: bool = False
) -> tuple[Sweep, str]:
    """Read a sweep by built-in name or path; returns it and what to call it in messages.

    Args:
        settings: `section.key=value` overrides, the value in TOML (`train.batch_size=4096`).
        quick: take the smaller version that the file has under `[quick]`: `"section.key" = value`.
            It is called NAME-quick.

    Raises:
        UserError: names the file, the key, the value and what is allowed.
    """
    path = find("sweeps", name)
    values = read_toml(path)
    values.setdefault("name", path.stem)
    smaller = values.pop("quick", None)
    if quick:
        if not isinstance(smaller, dict) or not smaller:
            raise UserError(
                "This sweep has no smaller version.",
                where=f"{path}, [quick]",
                found="nothing" if smaller is None else repr(smaller),
                allowed='lines of the kind "train.epochs" = 1',
                next_step="--set train.epochs=1",
            )
        values["name"] = f"{values['name']}-quick"
        for key, value in smaller.items():
            _override(values, key, value)
    for setting in settings:
        _override(values, *_read(setting))
    return validate(Sweep, values, str(path)), str(path)


def _read(setting: str) -> tuple[str, Any]:
    import tomllib

    key, separator, text = setting.partition("=")
    if not separator or not key.strip():
        raise UserError(
            "A setting is key=value.", found=repr(setting), allowed="train.batch_size=4096"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return key.strip(), text  # a bare word: --set activations.recipe=embedded


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if isinstance(values, list) and len(values) == 1:
            values = values[0]
        if not isinstance(values, dict):
            raise UserError(
                "A setting must lead to one key of one table.",
                where=key,
                found=type(values).__name__,
            )
    values[last] = value
