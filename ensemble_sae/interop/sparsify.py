"""sparsify: `SparseCoder.load_from_disk(folder)`; `cfg.json` and `sae.safetensors`. TopK only."""

from __future__ import annotations

from pathlib import Path

from ensemble_sae.errors import UserError
from ensemble_sae.files import open_tensors, write_json, write_tensors
from ensemble_sae.interop.about import About
from ensemble_sae.interop.kinds import kind_of, made
from ensemble_sae.interop.reading import config_of, k_of, loaded, tensor_of
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


def from_sparsify(path: str | Path) -> Sae:
    """A dictionary that sparsify saved, to be evaluated and looked at as a member is.

    Raises:
        UserError: no such folder, or one that is more than a code of the k largest: grouped,
            signed, a transcoder, with a skip connection. CorruptFile: tensors that are missing or
            of other shapes.
    """
    return loaded(read, path, "sparsify")


def read(folder: Path) -> tuple[Sae, About]:
    """A dictionary and what is said of it, which is nothing; see `from_sparsify`."""
    config = config_of(folder / CONFIG)
    plain = {"activation": "topk", "skip_connection": False, "transcode": False, "signed": False}
    for key, value in plain.items():
        if config.get(key, value) != value:
            raise UserError(
                "This sparsify dictionary does something that is not known here.",
                where=f"{folder / CONFIG}: {key}",
                found=repr(config[key]),
                allowed=repr(value),
            )
    path = folder / WEIGHTS
    file = open_tensors(path)
    encoder, bias, decoder, base = (
        tensor_of(file, name, path) for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    )
    params = {"encoder": encoder, "encoder_bias": bias - encoder @ base}
    params |= {"decoder": decoder, "decoder_bias": base}
    return made("topk", params, k=k_of(config.get("k"), folder / CONFIG)), About()
