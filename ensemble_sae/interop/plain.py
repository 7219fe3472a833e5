"""Plain safetensors: `sae.safetensors` and `config.json`, for whoever needs no package."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ensemble_sae.errors import UserError, nearest
from ensemble_sae.files import open_tensors, write_json, write_tensors
from ensemble_sae.interop.about import About
from ensemble_sae.interop.kinds import KINDS, kind_of, made
from ensemble_sae.interop.reading import config_of, count_of, k_of, tensor_of, text_of
from ensemble_sae.run.sae import Sae

CONFIG, WEIGHTS = "config.json", "sae.safetensors"
MORE: dict[str, tuple[str, ...]] = {  # what a kind has beside the four that all have
    "standard": (),
    "topk": (),
    "jumprelu": ("threshold",),
    "gated": ("gate_bias", "magnitude_bias", "magnitude_scale"),
}
LOAD = (
    "from safetensors.torch import load_file\ntensors = load_file({folder!r} + '/sae.safetensors')"
)


def write(folded: Sae, folder: Path, about: About) -> None:
    """`encoder [n, d]`, `encoder_bias [n]`, `decoder [n, d]`, `decoder_bias [d]`, and what the kind
    has beside them: z = x E^T + b, c = code(z), x^ = c D + b_d.
    """
    n, d = folded.params["decoder"].shape
    numbers = {name: float(value) for name, value in folded.buffers.items()}
    config = {"kind": kind_of(folded), "d_in": d, "d_sae": n, **numbers, **asdict(about)}
    write_tensors(folder / WEIGHTS, folded.params)
    write_json(folder / CONFIG, config)


def read(folder: Path) -> tuple[Sae, About]:
    """A dictionary that `write` wrote, and what is said of it.

    Raises:
        UserError: another kind of code than those known. CorruptFile: tensors are missing.
    """
    config = config_of(folder / CONFIG)
    kind = config.get("kind")
    if kind not in KINDS:
        raise UserError(
            "This kind of dictionary is not known here.",
            where=f"{folder / CONFIG}: kind",
            found=repr(kind),
            allowed=nearest(str(kind), KINDS),
        )
    path = folder / WEIGHTS
    file = open_tensors(path)
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias", *MORE[kind])
    params = {name: tensor_of(file, name, path) for name in names}
    k = k_of(_whole(config.get("k")), folder / CONFIG) if kind == "topk" else None
    about = About(
        hook=text_of(config.get("hook")) or "",
        model=text_of(config.get("model")),
        dataset=text_of(config.get("dataset")),
        context=count_of(config.get("context")),
    )
    return made(kind, params, k=k), about


def _whole(value: Any) -> Any:
    """A k that was written with a fraction of 0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
