"""Which tensors a member has, by its signature and its options."""

from __future__ import annotations

from .cases import Case

PARAMS = {
    "tied": "encoder_bias decoder",
    "tied_centered": "encoder_bias decoder",
    "jumprelu": "encoder encoder_bias decoder log_threshold",
    "gated": "encoder gate_bias magnitude_bias magnitude_scale decoder",
    "thresholding": "encoder encoder_bias decoder log_gain threshold",
    "rica": "decoder",
    "fista": "decoder",
    "lista": "encoder threshold gain decoder",
    "spike_slab_vae": "encoder encoder_bias variance_encoder variance_bias spike_encoder "
    "spike_bias decoder pseudo_inputs choice choice_bias",
    "semilinear": "hidden hidden_bias encoder encoder_bias decoder",
    "transcoder": "encoder encoder_bias decoder decoder_bias",
    "crosscoder": "encoder encoder_bias decoder decoder_bias",
}
BUFFERS = {
    "masked": "mask",
    "batchtopk": "threshold",
    "matryoshka": "threshold prefix_weight",
    "fista": "momentum",
    "lp": "step",
    "crosscoder": "layers",
}


def param_names(name: str, case: Case) -> set[str]:
    found = set(PARAMS.get(name, "encoder encoder_bias decoder").split())
    if name == "positive" and case.options["tied"]:
        found -= {"encoder"}
    if case.options.get("centring") == "learned":
        found |= {"centre"}
    if case.options.get("decoder_bias"):
        found |= {"decoder_bias"}
    return found


def buffer_names(name: str, case: Case) -> set[str]:
    """The hyper-parameters, and what the options and the signature need."""
    options, found = case.options, set(case.hyper) | set(BUFFERS.get(name, "").split())
    there = {
        "input_floor": options.get("input_relu"),
        "centre": options.get("centring") == "mean",
        "whitening": options.get("whitening"),
        "unwhitening": options.get("whitening"),
        "projected": options.get("unit_norm") == "project",
        "dead": options.get("revive", "none") != "none",
    }
    return found | {key for key, value in there.items() if value}
