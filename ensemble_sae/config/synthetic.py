"""The schema of recipes for synthetic rows, whose true features are known."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ensemble_sae.config.strict import Refused, Strict

Distribution = Literal["uncorrelated", "correlated"]
Amplitude = Literal["uniform", "constant", "exponential", "half_normal"]


class SyntheticRecipe(Strict):
    """Rows that are sparse sums of random unit directions; one store per distribution."""

    kind: Literal["synthetic"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="the stores' folder")
    hooks: tuple[Distribution, ...] = Field(
        ("uncorrelated", "correlated"), min_length=1, strict=False, description="one store for each"
    )
    d_activation: int = Field(256, ge=1, description="values per row")
    n_features: int = Field(512, ge=1, description="true features")
    decay: float = Field(0.99, gt=0, le=1, description="feature i is decay**i as frequent")
    mean_active: float = Field(5.0, gt=0, description="features per row, on average")
    code: Amplitude = Field("uniform", description="how strong: U(0, 1), 1, Exp(1) or |N(0, 1)|")
    noise: float = Field(0.0, ge=0, description="standard deviation of dense Gaussian noise")
    rows: int = Field(ge=2, description="rows in all, held-out ones too")
    chunk_rows: int = Field(65_536, ge=1, description="rows per chunk, at most")
    dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="as stored")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of the rows")
    seed: int = Field(0, ge=0, description="of the features and of the rows")
    on_the_fly: bool = Field(False, description="make rows when they are read, write none")

    @field_validator("hooks")
    @classmethod
    def _once_each(cls, hooks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(hooks)) != len(hooks):
            raise ValueError("each distribution once")
        return hooks

    @model_validator(mode="after")
    def _can_be_drawn(self) -> SyntheticRecipe:
        most = sum(self.decay**i for i in range(self.n_features))
        if self.mean_active > most:
            raise Refused(
                "The most frequent feature would be active in more than every row.",
                where="mean_active",
                found=f"{self.mean_active:g}",
                allowed=f"up to {most:.4g}, the sum of decay^i over {self.n_features} features",
            )
        if self.rows - round(self.rows * self.held_out) < 1:
            raise Refused(
                "No row is left to train on.",
                where="held_out",
                found=f"{self.held_out:g} of {self.rows} rows",
            )
        return self

    def source(self, hook: str) -> dict[str, Any]:
        """What the rows depend on: written to the store, compared before it is used again."""
        return {"hook": hook, **self.model_dump(exclude={"name", "hooks"})}
