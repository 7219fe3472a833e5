"""The schema of `activations/*.toml`: which activations of which model on which text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ensemble_sae.config.builtin import find
from ensemble_sae.config.strict import Strict, read_toml, validate
from ensemble_sae.config.synthetic import SyntheticRecipe

# What may differ between two runs of the harvest that continue each other: it moves no row.
_FREE = frozenset({"name", "hooks", "device"})


class Recipe(Strict):
    """One harvest: a language model runs once over a text, its hooks' rows are stored."""

    name: str = Field(description="the stores' folder below the data folder; the file's by default")
    model: str = Field(description='"embedded", a Hugging Face name, or a local folder')
    dataset: str = Field(
        description='"embedded", local text / .jsonl / .parquet files (a file, a folder or a '
        "glob), or a Hugging Face name (streamed)"
    )
    dataset_config: str | None = Field(default=None, description="configuration of a HF data set")
    split: str = Field(default="train", description="split of a Hugging Face data set")
    text_field: str = Field(default="text", description="field or column that holds the text")
    hooks: tuple[str, ...] = Field(
        min_length=1, strict=False, description="hook points, one store for each"
    )
    context: int = Field(default=256, ge=2, description="tokens per context, BOS included")
    rows: int | None = Field(
        default=None, ge=2, description="rows to keep, held-out ones too; all of the data if unset"
    )
    chunk_rows: int = Field(default=65_536, ge=1, description="rows per chunk, at most")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        default="float16", description="of the stored rows"
    )
    held_out: float = Field(default=0.05, ge=0, lt=1, description="share of the documents")
    drop_bos: bool = Field(default=True, description="do not store the rows of BOS tokens")
    batch_size: int = Field(default=32, ge=1, description="contexts per forward")
    seed: int = Field(default=0, ge=0, description="of the shuffle and the choice of held-out")
    device: str = Field(default="auto", description='"auto", "cpu", "cuda" or "cuda:N"')
    model_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the model's weights while it runs"
    )

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise ValueError("a plain name without path separators")
        return name

    @field_validator("hooks")
    @classmethod
    def _hooks_once_each(cls, hooks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(hooks)) != len(hooks) or "" in hooks:
            raise ValueError("hook names, each once")
        return hooks

    @field_validator("chunk_rows")
    @classmethod
    def _a_chunk_holds_a_context(cls, chunk_rows: int, info: ValidationInfo) -> int:
        context = info.data.get("context", 1)
        if chunk_rows < context:
            raise ValueError(f"at least one context: {context} rows")
        return chunk_rows

    def source(self, hook: str) -> dict[str, Any]:
        """What the rows of `hook` depend on: written to the store, compared before continuing."""
        return {"hook": hook, **self.model_dump(exclude=set(_FREE))}


AnyRecipe = Recipe | SyntheticRecipe


def load_recipe(
    name_or_path: str | Path | None, overrides: Mapping[str, Any] | None = None
) -> AnyRecipe:
    """The recipe of a built-in name or a TOML file, with single fields replaced.

    A file that says `kind = "synthetic"` is a recipe for synthetic rows.

    Args:
        name_or_path: a name in `activations/`, a path that ends in `.toml`, or None when
            `overrides` says everything.
        overrides: field -> value; a value of None leaves the field alone.

    Raises:
        UserError: no such recipe, an unknown key, or a value that is not allowed.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    if name_or_path is None:
        if "model" in given:
            given.setdefault("name", Path(str(given["model"])).name)
        return validate(Recipe, given, "command line")
    path = find("activations", name_or_path)
    where = f"{path} with {', '.join(given)} replaced" if given else str(path)
    values = {"name": path.stem, **read_toml(path), **given}
    if "kind" in values:
        return validate(SyntheticRecipe, values, where)
    return validate(Recipe, values, where)
