"""What a chunk store says of itself: the schema of `meta.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import read_json, write_json

SCHEMA_VERSION = 1
META = "meta.json"

Dtype = Literal["float16", "bfloat16", "float32"]
DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChunkInfo(_Part):
    """One chunk file, as `meta.json` knows it."""

    index: int = Field(ge=0)
    file: str
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)  # of the whole file
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    held_out: bool

    @field_validator("file")
    @classmethod
    def _stays_in_the_folder(cls, file: str) -> str:
        if not file or file.startswith(".") or any(c in file for c in "/\\\0:"):
            raise ValueError("a plain file name inside the store's own folder")
        return file


class Source(BaseModel):
    """Where the rows come from. Writers may add fields of their own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str | None = None
    hook: str | None = None
    dataset: str | None = None
    context: int | None = None  # tokens
    seed: int = 0

    @property
    def is_made_when_read(self) -> bool:
        """Whether there are no files of rows, but what makes them."""
        known = self.model_extra or {}
        return known.get("kind") == "synthetic" and known.get("on_the_fly") is True


class NonFinite(_Part):
    """Rows that were left out because a value was not finite in the stored dtype."""

    count: int = Field(default=0, ge=0)
    first: list[str] = []  # where the first of them came from, for people


class Meta(_Part):
    """The content of `meta.json`.

    The statistics are over the training rows (never the held-out ones), in float64:
    `mean_j = E[x_j]`, `variance_j = E[(x_j - mean_j)^2]` and
    `scale = sqrt(E[||x - mean||^2] / d) = sqrt(mean over j of variance_j)`:
    the root mean square of a centred coordinate. All are 0 while there is no training row.
    """

    schema_version: Literal[1] = 1
    d_activation: int = Field(ge=1)
    dtype: Dtype
    rows: int = Field(ge=0)  # training and held-out
    complete: bool  # False while a writer may still add chunks
    chunks: list[ChunkInfo]
    source: Source
    mean: list[float]
    variance: list[float]
    scale: float = Field(ge=0)
    non_finite_rows: NonFinite = NonFinite()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Meta:
        if [chunk.index for chunk in self.chunks] != list(range(len(self.chunks))):
            raise ValueError("chunks numbered 0, 1, 2, ... without a gap")
        if len({chunk.file for chunk in self.chunks}) != len(self.chunks):
            raise ValueError("a file of its own for every chunk")
        if self.rows != sum(chunk.rows for chunk in self.chunks):
            raise ValueError("rows = the sum of the chunks' rows")
        if not len(self.mean) == len(self.variance) == self.d_activation:
            raise ValueError("d_activation values in mean and in variance")
        return self

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the stored activations."""
        return DTYPES[self.dtype]

    def training_rows(self) -> int:
        """The number of rows that are not held out."""
        return sum(chunk.rows for chunk in self.chunks if not chunk.held_out)


def read_meta(store: Path) -> Meta:
    """Read and check `<store>/meta.json`.

    Raises:
        UserError: there is no such store.
        CorruptFile: not valid JSON, of a newer schema, or at odds with itself; names the key.
    """
    path = store / META
    if not path.is_file():
        raise UserError(
            "There is no chunk store here.",
            where=str(store),
            found=f"no {META}" if store.is_dir() else "no such folder",
            next_step="python -m ensemble_sae.harvest RECIPE",
        )
    values: Any = read_json(path)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CorruptFile(
            "This chunk store was written by a newer version of ensemble-sae.",
            where=f"{path}: schema_version",
            found=str(version),
            allowed=f"up to {SCHEMA_VERSION}",
            next_step="update ensemble-sae, or harvest again with this version",
        )
    try:
        return Meta.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise CorruptFile(
            "A chunk store's description is damaged.",
            where=f"{path}: {key}" if key else str(path),
            found="" if not key else repr(problem["input"])[:200],
            allowed=problem["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
        ) from None


def write_meta(store: Path, meta: Meta) -> None:
    """Write `<store>/meta.json` atomically."""
    write_json(store / META, meta.model_dump())
