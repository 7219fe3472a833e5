"""Reconstruction ICA: the one baseline that gradients train, as members are trained."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ensemble_sae.baselines.components import enough
from ensemble_sae.baselines.fixed import as_sae
from ensemble_sae.randomness import generator, permutation
from ensemble_sae.run.sae import Sae
from ensemble_sae.signatures.rica import Rica
from ensemble_sae.sweep.member import Value
from ensemble_sae.train.ensemble import FunctionalEnsemble


def rica(
    rows: Tensor,
    n_dict: int,
    seed: int,
    *,
    l1: float = 1e-4,
    beta: float = 1e-2,
    lr: float = 1e-3,
    steps: int = 2000,
    batch_size: int = 1024,
    centring: Literal["none", "mean"] = "mean",
    whitening: bool = False,
) -> Sae:
    """x^ = (x W^T) W with a smooth L1 on the code: see the signature `rica`. Trained by Adam.

    Batches go through the rows in an order of its own per epoch; the rest of an epoch that fills
    no batch is left out.

    Source: Le et al. 2011, "ICA with Reconstruction Cost for Efficient Overcomplete Feature
    Learning", section 3.

    Args:
        rows: `[N, d]`. lr: Adam's. steps: updates.
        l1, beta: of the signature. Where n l1 times a code's typical size comes near the rows' mean
            square, W shrinks to nothing: look at the FVU.
        batch_size: rows per update, at most N.
        whitening: in whitened rows, with the code as it is there.

    Raises:
        UserError: no rows; whitening where the covariance is singular.
    """
    enough(rows, 1)
    options: dict[str, Value] = {"l1": l1, "beta": beta, "centring": centring}
    options["whitening"] = whitening
    draw = generator(seed, "rica baseline")
    member = Rica.init(rows.shape[1], n_dict, generator=draw, **options)  # type: ignore[arg-type]
    member = Rica.fit(*member, rows.cpu())
    batch_size = min(batch_size, len(rows))
    ensemble = FunctionalEnsemble.from_members(
        Rica, [member], lr=lr, device=rows.device, batch_size=batch_size, seed=seed, steps=steps
    )
    per_epoch = len(rows) // batch_size
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = permutation(len(rows), seed, "rica baseline", epoch).to(rows.device)
        ensemble.step(rows[order[place * batch_size : (place + 1) * batch_size]])
    params, buffers = ensemble.member(0)
    options |= {"lr": lr, "steps": steps, "batch_size": batch_size}
    return as_sae("rica", Rica, params, buffers, seed=seed, options=options)
