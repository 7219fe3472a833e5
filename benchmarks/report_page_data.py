"""Made-up members and features for `report_page.py`, of the sizes that sweeps have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from ensemble_sae.inspection.collecting import BINS
from ensemble_sae.inspection.examples import Contexts, Examples
from ensemble_sae.inspection.feature import Features
from ensemble_sae.reporting import curves
from ensemble_sae.reporting.looking import Looked
from ensemble_sae.reporting.members import members as told_of
from ensemble_sae.run import Run

D, WORDS, WIDTH = 512, 30_000, 64  # of rows; of the vocabulary; of a fragment
TOP, SPREAD, RANDOM = 20, 10, 2  # contexts that are kept of a feature
FIRES = 0.1  # share of tokens of a fragment on which its feature is active
BINS_OF_DENSITY = 28


def data_of(members: int, rounds: int, chosen: list[Looked]) -> dict[str, Any]:
    """All of the page but the features."""
    draw = np.random.default_rng(0)
    table = _table(members, draw)
    steps = 256 * np.arange(1, rounds + 1)
    metrics = pd.DataFrame(
        {
            "member": np.repeat(table.index, rounds),
            "step": np.tile(steps, members),
            **{name: draw.random(members * rounds) + 0.01 for name in ("fvu", "l0", "loss")},
        }
    )
    return {
        "name": "made-up",
        "load": "ensemble_sae.load('runs/made-up')",
        "path": "runs/made-up",
        "glance": [("members", f"{members}")],
        "members": told_of(table, {}),
        "training": curves.training(cast(Run, SimpleNamespace(metrics=metrics))),
        "densities": curves.densities(table),
        "neighbours": {},
        "histories": {},
        "evaluated": {},
        "features": [{"member": one.member, "features": len(one.features)} for one in chosen],
        "notes": [],
    }


def _table(members: int, draw: np.random.Generator) -> pd.DataFrame:
    """25 penalties, 5 ratios, 2 signatures, and as many seeds as it takes."""
    place = np.arange(members)
    l1, ratio = np.geomspace(1e-4, 1e-1, 25)[place % 25], 2.0 ** (place // 25 % 5)
    l0 = 0.02 / l1 * draw.uniform(0.7, 1.4, members)
    counts = draw.integers(0, 400, (members, BINS_OF_DENSITY + 1))
    return pd.DataFrame(
        {
            "name": [
                f"member l1={p:.1e} r={r:g} of {i}"
                for i, (p, r) in enumerate(zip(l1, ratio, strict=True))
            ],
            "signature": np.where(place // 125 % 2, "untied", "tied"),
            "hook": "blocks.2.hook_resid_pre",
            "d_activation": D,
            "n_dict": (D * ratio).astype(int),
            "dict_ratio": ratio,
            "lr": 1e-3,
            "grad_clip": None,
            "seed": place // 250,
            "l1": l1,
            "bias_decay": 0.0,
            "group": "g",
            "status": "trained",
            "fvu": 1 / (1 + l0) + draw.uniform(0, 0.05, members),
            "l0": l0,
            "dead": draw.random(members) / 10,
            "density_histogram": counts.tolist(),
            "pareto": draw.random(members) < 0.1,
            "flags": "",
        }
    ).rename_axis("id")


def looked_at(member: int, features: int) -> Looked:
    """A member of which every feature has all its contexts, and a rule."""
    generator = torch.Generator().manual_seed(member)
    draw = np.random.default_rng(member)
    words = {token: f" word{token}" for token in range(WORDS)}
    lists = ("promoted", "suppressed")
    # A feature's tokens are much alike, as they are in a text
    about = draw.integers(0, WORDS - 64, features)
    table = pd.DataFrame(
        {
            "density": 10 ** draw.uniform(-5, -1, features),
            "mean": draw.random(features) + 0.1,
            "max": np.ones(features, np.float32),
            "ablation_kl": draw.random(features),
            **{name: [[words[a + i] for i in range(8)] for a in about] for name in lists},
        }
    ).rename_axis("feature")
    kinds = [_contexts(features, count, about, generator) for count in (TOP, SPREAD, RANDOM)]
    drawn = kinds[1].activations.argmax(2)
    found = Features(
        cast(Any, _sae(features, generator)),
        {
            "model": "none",
            "dataset": "made up",
            "fragments": 50_000,
            "width": WIDTH,
            "tokens": 3_200_000,
        },
        table,
        Examples(torch.arange(features), kinds[0], kinds[1], kinds[2], drawn),
        words,
        histogram=torch.randint(0, 5_000, (features, BINS), generator=generator).int(),
    )
    rules = pd.DataFrame(
        {
            "rule": [f"on `{words[a]}`, `{words[a + 1]}` and {a % 40} more" for a in about],
            "top_and_random": draw.random(features),
        }
    )
    return Looked(member, found, rules, f"ensemble_sae.features(run, {member})")


def _sae(features: int, generator: torch.Generator) -> SimpleNamespace:
    directions = torch.randn(features, D, generator=generator)
    config = SimpleNamespace(n_dict=features, d_activation=D, id=0, name="", hook="")
    return SimpleNamespace(
        config=config, dictionary=directions / directions.norm(dim=1, keepdim=True)
    )


def _contexts(features: int, count: int, about: np.ndarray, generator: torch.Generator) -> Contexts:
    shape = (features, count, WIDTH)
    near = torch.from_numpy(about)[:, None, None]
    active = torch.rand(shape, generator=generator) < FIRES
    strength = torch.rand(shape, generator=generator) * active
    strength[..., WIDTH // 2] = 1.0
    common = torch.randint(0, 500, shape, generator=generator)
    own = near + torch.randint(0, 64, shape, generator=generator)
    fragments = torch.randint(0, 50_000, (features, count), generator=generator)
    return Contexts(torch.where(active, own, common).int(), strength, fragments)
