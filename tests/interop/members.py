"""Members of every kind that can be exported, with everything that must be folded, untrained."""

from __future__ import annotations

import torch

from ensemble_sae.data.units import Units
from ensemble_sae.run import Sae
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.sweep.member import Member

D, N = 12, 20
CASES = {
    "tied": ("tied", {}),
    "untied": ("untied", {}),
    "untied, projected": ("untied", {"unit_norm": "project", "decoder_bias": True}),
    "tied, learned centre": ("tied_centered", {}),
    "tied, whitened": ("tied_centered", {"whitening": True, "centring": "mean"}),
    "affine": ("affine", {}),
    "positive": ("positive", {}),
    "masked": ("masked", {}),
    "lp": ("lp", {}),
    "noise": ("noise", {}),
    "topk": ("topk", {"k": 3.0}),
    "topk, whitened": ("topk", {"k": 3.0, "whitening": True}),
    "batchtopk": ("batchtopk", {"k": 3.0}),
    "matryoshka": ("matryoshka", {}),
    "jumprelu": ("jumprelu", {}),
    "gated": ("gated", {}),
}
REFUSED = {
    "thresholding": "no affine encoder with a relu",
    "semilinear": "no affine encoder with a relu",
    "fista": "",
    "lista": "",
    "rica": "",
    "spike_slab_vae": "",
}


def member(signature: str, options: dict, *, seed: int = 0) -> Sae:
    """A member whose tensors are all drawn at random, in units of their own."""
    draw = torch.Generator().manual_seed(seed)
    kind = BUILTIN[signature]
    params, buffers = kind.init(D, N, generator=draw, **options)
    rows = torch.randn(400, D, generator=draw) @ torch.randn(D, D, generator=draw) + 1.5
    if hasattr(kind, "fit"):
        params, buffers = kind.fit(params, buffers, rows)
    params = {k: t + 0.3 * torch.randn(t.shape, generator=draw) for k, t in params.items()}
    if hasattr(kind, "project"):
        params = kind.project(params, buffers)
    if "threshold" in buffers:
        buffers = buffers | {"threshold": torch.tensor(0.4)}
    units = Units(2.5, tuple(torch.randn(D, generator=draw).tolist()))
    config = Member(
        id=3,
        name=f"{signature} of a test",
        signature=signature,
        hook="blocks.0.hook_resid_pre",
        d_activation=D,
        n_dict=N,
        dict_ratio=N / D,
        lr=1e-3,
        grad_clip=None,
        seed=seed,
        hyperparameters={},
        widths=(D,),
    )
    return Sae(config, kind, params, buffers, units)


def rows(count: int = 64) -> torch.Tensor:
    """Rows in the model's units."""
    return 3.0 * torch.randn(count, D, generator=torch.Generator().manual_seed(9)) + 0.5
