"""sparsify: `SparseCoder.load_from_disk(folder)`; `cfg.json` and `sae.safetensors`. TopK only."""

from __future__ import annotations

from pathlib import Path

from ensemble_sae.errors import UserError
from ensemble_sae.files import write_json, write_tensors
from ensemble_sae.interop.about import About
from ensemble_sae.interop.kinds import kind_of
from ensemble_sae.run.sae import Sae

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
LOAD = "from sparsify import SparseCoder\nsae = SparseCoder.load_from_disk({folder!r})"


def write(folded: Sae, folder: Path, about: About) -> None:
    """Write a folded top-k member; theirs takes b_dec from a row before it encodes it.

    Raises:
        UserError: the member is of another kind.
    """
    kind, p = kind_of(folded), folded.params
    if kind != "topk":
        raise UserError(
            "sparsify's format has only a code of the k largest.",
            found=f"a {kind} code: {about.text}",
            allowed="members of the signature topk",
            next_step="--to saelens, dictionary_learning or safetensors",
        )
    n, d = p["decoder"].shape
    tensors = {
        "encoder.weight": p["encoder"],
        "encoder.bias": p["encoder_bias"] + p["encoder"] @ p["decoder_bias"],
        "W_dec": p["decoder"],
        "b_dec": p["decoder_bias"],
    }
    config = {
        "activation": "topk",
        "expansion_factor": max(1, n // d),
        "normalize_decoder": True,
        "num_latents": n,
        "k": int(folded.buffers["k"]),
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": d,
    }
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, config)
