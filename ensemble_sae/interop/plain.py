"""Plain safetensors: `sae.safetensors` and `config.json`, for whoever needs no package."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ensemble_sae.files import write_json, write_tensors
from ensemble_sae.interop.about import About
from ensemble_sae.interop.kinds import kind_of
from ensemble_sae.run.sae import Sae

CONFIG, WEIGHTS = "config.json", "sae.safetensors"
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
