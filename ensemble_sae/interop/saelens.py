"""SAELens: `SAE.load_from_disk(folder)`; `cfg.json` and `sae_weights.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.files import open_tensors, write_json, write_tensors
from ensemble_sae.interop.about import About
from ensemble_sae.interop.kinds import kind_of, made
from ensemble_sae.interop.reading import (
    config_of,
    count_of,
    k_of,
    loaded,
    table_of,
    tensor_of,
    text_of,
)
from ensemble_sae.run.sae import Sae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.0.0"  # from which on unknown metadata are kept
# Their names of what a kind has beside W_enc, b_enc, W_dec, b_dec.
MORE = {
    "standard": {},
    "topk": {},
    "jumprelu": {"threshold": "threshold"},
    "gated": {"gate_bias": "b_gate", "magnitude_bias": "b_mag", "magnitude_scale": "r_mag"},
}
LOAD = "from sae_lens import SAE\nsae = SAE.load_from_disk({folder!r})"


def write(folded: Sae, folder: Path, about: About) -> None:
    """Write a folded member: their `standard`, `topk`, `jumprelu` or `gated`."""
    kind, params = kind_of(folded), folded.params
    n, d = params["decoder"].shape
    tensors = {
        "W_enc": params["encoder"].mT,
        "W_dec": params["decoder"],
        "b_dec": params["decoder_bias"],
        **{theirs: params[ours] for ours, theirs in MORE[kind].items()},
    }
    if kind != "gated":
        tensors["b_enc"] = params["encoder_bias"]
    config: dict[str, Any] = {
        "architecture": kind,
        "d_in": d,
        "d_sae": n,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _metadata(about),
    }
    if kind == "topk":
        config |= {"k": int(folded.buffers["k"]), "rescale_acts_by_decoder_norm": False}
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, config)


def from_saelens(path: str | Path) -> Sae:
    """A dictionary that SAELens saved, to be evaluated and looked at as a member is.

    Raises:
        UserError: no such folder, or something that it says and is not known here: another
            architecture, normalised or reshaped activations. CorruptFile: tensors that are
            missing or of other shapes.
    """
    return loaded(read, path, "saelens")


def read(folder: Path) -> tuple[Sae, About]:
    """A dictionary and what is said of it; see `from_saelens`."""
    config = config_of(folder / CONFIG)
    kind: Any = config.get("architecture")
    kind = "jumprelu" if kind == "batchtopk" else kind
    _check(config, kind, folder)
    file = open_tensors(folder / WEIGHTS)
    wanted = {"encoder": "W_enc", "decoder": "W_dec", "decoder_bias": "b_dec"} | MORE[kind]
    if kind != "gated":
        wanted["encoder_bias"] = "b_enc"
    params = {ours: tensor_of(file, theirs, folder / WEIGHTS) for ours, theirs in wanted.items()}
    params["encoder"] = params["encoder"].mT
    if kind == "gated":
        params["encoder_bias"] = params["gate_bias"].new_zeros(params["gate_bias"].shape)
    if config.get("apply_b_dec_to_input", False):  # x - b_dec is read: the same, in b_enc
        shift = params["encoder"] @ params["decoder_bias"]
        params |= _less(kind, params, shift)
    k = None
    if kind == "topk":  # versions before 6 had it among the arguments of a function
        older = table_of(config, "activation_fn_kwargs")
        k = k_of(config.get("k", older.get("k")), folder / CONFIG)
    return made(kind, params, k=k), _about(config)


def _about(config: dict[str, Any]) -> About:
    """What the metadata say; versions before 6 had them beside the other keys."""
    said = config | table_of(config, "metadata")
    return About(
        hook=text_of(said.get("hook_name")) or text_of(said.get("hook_point")) or "",
        model=text_of(said.get("model_name")),
        dataset=text_of(said.get("dataset_path")),
        context=count_of(said.get("context_size")),
    )


def _less(kind: str, params: dict[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
    """The biases of rows from which b_dec is taken, `shift` = E b_dec: `[n]`."""
    if kind != "gated":
        return {"encoder_bias": params["encoder_bias"] - shift}
    scale = params["magnitude_scale"].exp()
    return {
        "gate_bias": params["gate_bias"] - shift,
        "magnitude_bias": params["magnitude_bias"] - shift * scale,
    }


def _metadata(about: About) -> dict[str, Any]:
    found = {
        "sae_lens_version": VERSION,
        "model_name": about.model,
        "hook_name": about.hook,
        "context_size": about.context,
        "prepend_bos": about.bos,
        "dataset_path": about.dataset,
        "ensemble_sae": about.member,
    }
    return {name: value for name, value in found.items() if value is not None}


def _check(config: dict[str, Any], kind: Any, folder: Path) -> None:
    allowed = {
        "architecture": tuple(MORE),
        "normalize_activations": ("none", None),
        "reshape_activations": ("none", None),
        "rescale_acts_by_decoder_norm": (False, None),
        "finetuning_scaling_factor": (False, None),  # this and the next two: of older versions
        "activation_fn": ("topk" if kind == "topk" else "relu", None),
        "activation_fn_str": ("topk" if kind == "topk" else "relu", None),
    }
    for key, values in allowed.items():
        found = kind if key == "architecture" else config.get(key)
        if found not in values:
            raise UserError(
                "This SAELens dictionary does something that is not known here.",
                where=f"{folder / CONFIG}: {key}",
                found=repr(found),
                allowed=", ".join(str(value) for value in values if value is not None),
                next_step="fold it into the weights with SAELens first, and save it again",
            )
