"""The table: every signature, its reference, and the hyper-parameters to test it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import models, sparse
from .frame import FRAME, REVIVE, Given, Result

Formula = Callable[[Given, np.ndarray], Result]


class Case(NamedTuple):
    """One way to set a signature up.

    `options`: all that `init` is given. `state`: buffers that are no hyper-parameters, where the
    case needs a value of its own. `draws`: buffer -> distribution of what the loss is handed.
    """

    id: str
    result: Formula
    options: Mapping[str, Any]
    state: Mapping[str, float] = {}
    draws: Mapping[str, str] = {}

    @property
    def hyper(self) -> dict[str, float]:
        """The hyper-parameters that may differ between members."""
        return {k: v for k, v in self.options.items() if type(v) is float and self._used(k)}

    def _used(self, name: str) -> bool:
        revive = self.options.get("revive", "none")
        return {"aux_k": revive == "aux_k", "aux_weight": revive != "none"}.get(name, True)


FRAMES = {
    "plain": {},
    "centred": {"centring": "learned", "decoder_bias": True, "unit_norm": "project"},
    "whitened": {"input_relu": True, "centring": "mean", "whitening": True},
}
REVIVED = {
    "aux_k": {"revive": "aux_k", "aux_k": 2.0, "aux_weight": 0.3},
    "aux_k of all": {"revive": "aux_k", "aux_k": 64.0, "aux_weight": 0.3, "unit_norm": "project"},
    "pre_act": {"revive": "pre_act", "aux_weight": 0.3},
    "none dead": {"revive": "aux_k", "aux_k": 2.0, "aux_weight": 0.3},
}
EVERYTHING = {
    "input_relu": True,
    "centring": "learned",
    "whitening": True,
    "decoder_bias": True,
    "unit_norm": "project",
}


def frames(result: Formula, options: Mapping[str, Any], **case: Any) -> list[Case]:
    """A signature with the options of a frame."""
    base = {**FRAME, **options}
    ways = {**FRAMES, "everything": EVERYTHING}
    return [Case(name, result, {**base, **way}, **case) for name, way in ways.items()]


def revived(result: Formula, options: Mapping[str, Any], **case: Any) -> list[Case]:
    """A signature with the options of a frame, which can revive dead features too."""
    known = frames(result, {**REVIVE, **options}, **case)
    base, state = known[0].options, dict(case.pop("state", {}))
    for name, way in REVIVED.items():
        none = {"dead": 0.0} if name == "none dead" else {}
        known.append(Case(name, result, {**base, **way}, state | none, **case))
    everything = {**base, **EVERYTHING, **REVIVED["aux_k"]}
    return [*known, Case("everything revived", result, everything, state, **case)]


def varied(plain: Case, *changes: tuple[Mapping[str, Any], Mapping[str, float]]) -> list[Case]:
    """The plain case with other options and state."""
    return [
        plain._replace(
            id=", ".join(f"{k} {v}" for k, v in {**options, **state}.items()),
            options={**plain.options, **options},
            state={**plain.state, **state},
        )
        for options, state in changes
    ]


L1 = {"l1": 0.03}
DECAYS = {**L1, "bias_decay": 0.05}


def _table() -> dict[str, list[Case]]:
    table = {
        "untied": revived(sparse.untied, DECAYS),
        "tied": revived(sparse.tied, DECAYS),
        "tied_centered": revived(sparse.tied, DECAYS),
        "affine": revived(sparse.affine, L1),
        "positive": revived(sparse.positive, {**DECAYS, "tied": True, "bias_start": -0.1}),
        "masked": revived(sparse.masked, DECAYS),
        "topk": revived(sparse.topk, {"k": 2.0}),
        "batchtopk": revived(sparse.batchtopk, {"k": 2.0}),
        "matryoshka": revived(sparse.matryoshka, {"k": 2.0, "prefixes": 3}),
        "jumprelu": revived(
            sparse.jumprelu, {"l0_coefficient": 0.04, "bandwidth": 0.5, "threshold_start": 0.3}
        ),
        "gated": revived(sparse.gated, L1),
        "thresholding": revived(
            sparse.thresholding, {**DECAYS, "width": 0.8, "threshold_start": 0.3}
        ),
        "rica": _rica(),
        "fista": frames(models.fista, {"l1": 0.05, "iterations": 16}),
        "lista": frames(models.lista, {**L1, "iterations": 4}),
        "noise": revived(sparse.noise, {"noise": 0.3}, draws={"draw/code": "normal"}),
        "lp": revived(sparse.lp, {**L1, "p": 0.5, "anneal": 0.0}, state={"step": 3.0}),
        "spike_slab_vae": frames(
            models.spike_slab_vae,
            {"alpha": 0.2, "beta": 0.1, "pseudo": 4},
            draws={"draw/spike": "uniform", "draw/slab": "normal"},
        ),
        "semilinear": revived(sparse.semilinear, {**DECAYS, "hidden": 0}),
        "transcoder": [Case("plain", models.transcoder, {**L1, "widths": (3, 2)})],
        "crosscoder": [
            Case("plain", models.crosscoder, {**L1, "widths": (2, 3)}),
            Case("three layers", models.crosscoder, {**L1, "widths": (1, 3, 1)}),
        ],
    }
    for name, changes in EXTRA.items():
        table[name] += varied(table[name][0], *changes)
    for name in ("noise", "spike_slab_vae"):
        table[name].append(table[name][0]._replace(id="not drawn", draws={}))
    return table


def _rica() -> list[Case]:
    options = {"input_relu": False, "centring": "none", "whitening": False, **L1, "beta": 0.5}
    whitened = {"input_relu": True, "centring": "mean", "whitening": True}
    return [
        Case("plain", models.rica, options),
        Case("centred", models.rica, {**options, "centring": "learned"}),
        Case("whitened", models.rica, {**options, **whitened}),
        Case("beta 0", models.rica, {**options, "beta": 0.0}),
    ]


EXTRA: dict[str, list[tuple[dict[str, Any], dict[str, float]]]] = {
    "positive": [({"tied": False}, {}), ({"tied": False, "unit_norm": "project"}, {})],
    "topk": [({"k": 1.0}, {}), ({"k": 64.0}, {})],
    "batchtopk": [({"k": 1.0}, {"threshold": -1.0}), ({"k": 64.0}, {})],
    "matryoshka": [({"prefixes": 5}, {"threshold": -1.0}), ({"prefixes": 1}, {})],
    "fista": [({"iterations": 1}, {}), ({"l1": 0.2}, {})],
    "lista": [({"iterations": 1}, {})],
    "lp": [
        ({"anneal": 10.0}, {}),
        ({"anneal": 10.0}, {"step": 0.0}),
        ({"anneal": 2.0, "p": 0.8}, {}),
    ],
    "semilinear": [({"hidden": 3}, {})],
    "spike_slab_vae": [({"pseudo": 1}, {})],
}
CASES = _table()
