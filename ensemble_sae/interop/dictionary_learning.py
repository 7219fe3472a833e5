"""dictionary_learning: `utils.load_dictionary(folder, device)`; `config.json` and `ae.pt`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_sae.errors import CorruptFile, UserError, nearest
from ensemble_sae.files import write_atomically, write_json
from ensemble_sae.interop.about import About
from ensemble_sae.interop.kinds import kind_of, made
from ensemble_sae.interop.reading import config_of, count_of, loaded, table_of, text_of
from ensemble_sae.run.sae import Sae

CONFIG, WEIGHTS = "config.json", "ae.pt"
CLASSES = {
    "standard": "AutoEncoder",
    "topk": "AutoEncoderTopK",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
}
LOAD = (
    "from dictionary_learning.utils import load_dictionary\n"
    "ae, config = load_dictionary({folder!r}, device='cpu')"
)


def write(folded: Sae, folder: Path, about: About) -> None:
    """Write a folded member as the class of theirs that computes the same.

    All but `JumpReluAutoEncoder` take their decoder's bias from a row before they encode it, so
    E b_d is added to what comes before the code.
    """
    kind, p = kind_of(folded), folded.params
    shift = p["encoder"] @ p["decoder_bias"]
    linear = {"encoder.weight": p["encoder"], "decoder.weight": p["decoder"].mT}
    bias = p["encoder_bias"] + shift
    trainer: dict[str, Any] = {}
    if kind == "standard":
        state = linear | {"encoder.bias": bias, "bias": p["decoder_bias"]}
    elif kind == "topk":
        k = int(folded.buffers["k"])
        numbers = {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
        state = linear | {"encoder.bias": bias, "b_dec": p["decoder_bias"]} | numbers
        trainer["k"] = k
    elif kind == "jumprelu":
        state = {"W_enc": p["encoder"].mT, "b_enc": p["encoder_bias"], "W_dec": p["decoder"]}
        state |= {"b_dec": p["decoder_bias"], "threshold": p["threshold"]}
    else:
        state = linear | {
            "decoder_bias": p["decoder_bias"],
            "r_mag": p["magnitude_scale"],
            "gate_bias": p["gate_bias"] + shift,
            "mag_bias": p["magnitude_bias"] + shift * p["magnitude_scale"].exp(),
        }
    ready = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    write_atomically(folder / WEIGHTS, lambda path: torch.save(ready, path))
    write_json(folder / CONFIG, {"trainer": trainer | _trainer(kind, p, about), **_buffer(about)})


def from_dictionary_learning(path: str | Path) -> Sae:
    """A dictionary that dictionary_learning saved, to be evaluated and looked at as a member is.

    `ae.pt` is read by torch with `weights_only=True`: tensors alone, no code.

    Raises:
        UserError: no such folder, or another class. CorruptFile: damaged, or tensors are missing.
    """
    return loaded(read, path, "dictionary_learning")


def read(folder: Path) -> tuple[Sae, About]:
    """A dictionary and what is said of it; see `from_dictionary_learning`."""
    config = config_of(folder / CONFIG)
    trainer = table_of(config, "trainer")
    known = {theirs: ours for ours, theirs in CLASSES.items()} | {"BatchTopKSAE": "batchtopk"}
    name = trainer.get("dict_class")
    if name not in known:
        raise UserError(
            "This dictionary_learning class is not known here.",
            where=f"{folder / CONFIG}: trainer.dict_class",
            found=repr(name),
            allowed=nearest(str(name), known),
        )
    state = _state(folder / WEIGHTS)
    try:
        return _made(known[name], state), _about(trainer, table_of(config, "buffer"))
    except KeyError as missing:
        raise CorruptFile(
            "A dictionary_learning dictionary lacks a tensor.",
            where=str(folder / WEIGHTS),
            found=", ".join(sorted(state)),
            allowed=str(missing.args[0]),
        ) from None


def _about(trainer: dict[str, Any], buffer: dict[str, Any]) -> About:
    """What the two tables say; `resid_post_layer_3` is what their scripts call a block's end."""
    point = text_of(trainer.get("submodule_name")) or ""
    if match := re.fullmatch(r"resid_post_layer_(\d+)", point):
        point = f"blocks.{match[1]}.hook_resid_post"
    return About(
        hook=point if "hook" in point else "",
        model=text_of(trainer.get("lm_name")),
        dataset=text_of(buffer.get("dataset")),
        context=count_of(buffer.get("ctx_len")),
    )


def _made(kind: str, state: dict[str, Tensor]) -> Sae:
    if kind == "jumprelu":
        params = {"encoder": state["W_enc"].mT, "encoder_bias": state["b_enc"]}
        params |= {"decoder": state["W_dec"], "decoder_bias": state["b_dec"]}
        return made(kind, params | {"threshold": state["threshold"]})
    encoder, decoder = state["encoder.weight"], state["decoder.weight"].mT
    names = {"standard": "bias", "gated": "decoder_bias"}
    base = state[names.get(kind, "b_dec")]
    shift = encoder @ base
    params = {"encoder": encoder, "decoder": decoder, "decoder_bias": base}
    if kind == "gated":
        params |= {
            "encoder_bias": torch.zeros_like(shift),
            "magnitude_scale": state["r_mag"],
            "gate_bias": state["gate_bias"] - shift,
            "magnitude_bias": state["mag_bias"] - shift * state["r_mag"].exp(),
        }
        return made(kind, params)
    params["encoder_bias"] = state["encoder.bias"] - shift
    if kind == "batchtopk":
        threshold = state["threshold"].clamp_min(0).expand(len(encoder))
        return made("jumprelu", params | {"threshold": threshold})
    return made(kind, params, k=int(state["k"]) if kind == "topk" else None)


def _state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError("A file is missing.", where=str(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch says of a damaged or a hostile file has many types
        raise CorruptFile(
            "This file holds no tensors that can be read safely.",
            where=str(path),
            found=str(error).splitlines()[0][:200],
        ) from None
    if not isinstance(state, dict):
        raise CorruptFile(
            "This file holds no state of a dictionary.",
            where=str(path),
            found=type(state).__name__,
            allowed="tensors by name",
        )
    return {name: t.float() for name, t in state.items() if isinstance(t, Tensor)}


def _trainer(kind: str, params: dict[str, Tensor], about: About) -> dict[str, Any]:
    n, d = params["decoder"].shape
    return {
        "trainer_class": "ensemble_sae",
        "dict_class": CLASSES[kind],
        "activation_dim": d,
        "dict_size": n,
        "device": "cpu",
        "lm_name": about.model,
        "submodule_name": about.hook,
        "ensemble_sae": about.member,
    }


def _buffer(about: About) -> dict[str, Any]:
    return {"buffer": {"ctx_len": about.context, "dataset": about.dataset}}
