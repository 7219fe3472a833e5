"""Dictionaries that reconstruct everything and mean nothing, and which penalty falls for them.

2 d atoms, the axes and their negatives, tell every row of d values exactly: so do any orthonormal
basis and its negatives. What does a penalty say of them, what of the true features, and what do the
detectors say? First of dictionaries that are given, then of those that are learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from ensemble_sae.analysis import recovery
from ensemble_sae.config.recipe import load_recipe
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.synthetic import codes, ground_truth
from ensemble_sae.metrics.detectors import detect
from ensemble_sae.metrics.matching import mmcs
from ensemble_sae.pages import figures
from ensemble_sae.pages.page import Page
from ensemble_sae.randomness import generator
from ensemble_sae.run import Run
from ensemble_sae.studies.request import Request
from ensemble_sae.train.start import orthogonal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPES = ("tricks_sparse", "tricks_dense")
ROWS = 20_000
ACTIVE = (1, 2, 4, 8, 16, 24, 28, 32, 40, 48)
PENALTIES = {"L1: sum of c": 1.0, "L1/2: sum of the roots of c": 0.5, "L0: active features": 0.0}
ABOUT = (
    "An overcomplete dictionary can cheat: the axes and their negatives, or any rotation of them, "
    "reconstruct every row exactly. Rows of 32 values are made of 64 known features, few of them "
    "active in a row or many."
)
COSTS = (
    "What a penalty charges per row for an exact reconstruction, by how many features are active: "
    "by the true features (the code that made the row), by the axes with their negatives, and by a "
    "rotation of these. A penalty prefers the lowest curve; where the true features' curve is not "
    "the lowest, it prefers a trick. All orthonormal bases are charged the same, on average."
)
GIVEN = (
    "Given dictionaries on sparse rows (two features active) and on dense ones (24). Codes of the "
    "true features are those that made the rows; all others are relu(x D^T). Flags: what the "
    "detectors of every run's table raise."
)
LEARNED = (
    "What is learned with each penalty, from sparse and from dense rows. MMCS of the truth: mean "
    "over true features of the largest cosine with an atom; random atoms have {random:.2f}."
)
TRAINED = (
    "Learned dictionaries: how much of the truth is in them, against how sparse they are, for each "
    "penalty. Dotted: what random atoms have."
)


def make(request: Request, console: Console) -> Page:
    """Compare given dictionaries, train others, draw.

    Raises:
        UserError, Interrupted: as `Request.train`.
    """
    sparse, dense = (_recipe(name) for name in RECIPES)
    runs = {
        name: request.train(
            "overcomplete_tricks",
            console,
            axes={"signature", "l1", "k", "p"},
            settings=(f"activations.recipe={name}",),
            folder=name,
        )
        for name in RECIPES
    }
    page = Page("Tricks of overcomplete dictionaries", ABOUT)
    page.heading("What each penalty prefers")
    costs = preferred(sparse)
    page.figure("costs", _costs(costs), COSTS)
    page.points(crossings(costs))
    page.heading("What the detectors say of given dictionaries")
    given = pd.concat([detected(sparse), detected(dense)])
    forms = {"active": "{:g}", "FVU": "{:.3f}", "L0": "{:.1f}", "smallest cosine": "{:.2f}"}
    page.table(given.set_index("dictionary"), GIVEN, forms)
    page.heading("What is learned")
    learned = pd.concat([_learned(run).assign(rows=name[7:]) for name, run in runs.items()])
    by_chance = chance(sparse)
    page.figure("learned", _trained(learned, by_chance), TRAINED)
    forms = {"FVU": "{:.3f}", "L0": "{:.1f}", "MMCS of the truth": "{:.2f}"}
    forms |= {"smallest cosine": "{:.2f}", "penalty": "{:.2g}"}
    page.table(learned.set_index("rows"), LEARNED.format(random=by_chance), forms)
    page.numbers("costs", costs.to_dict("records"))
    page.numbers("given", given.to_dict("records"))
    page.numbers("learned", learned.to_dict("records"))
    return page


def tricks(d: int) -> dict[str, Tensor]:
    """Dictionaries `[2 d, d]` that tell every row exactly by relu(x D^T)."""
    turned = orthogonal(d, d, generator(0, "tricks"))
    axes = torch.eye(d)
    return {
        "axes and negatives": torch.cat([axes, -axes]),
        "rotated and negatives": torch.cat([turned, -turned]),
    }


def preferred(recipe: SyntheticRecipe) -> pd.DataFrame:
    """What penalties charge per row for exact codes, by the mean number of active features."""
    found = []
    for active in ACTIVE:
        some = recipe.model_copy(update={"mean_active": float(active)})
        code, rows = _rows(some)
        exact = {"true features": code}
        for name, atoms in tricks(recipe.d_activation).items():
            exact[name] = torch.relu(rows @ atoms.T)
        found += [
            {"active": active, "dictionary": name, **_charged(one)} for name, one in exact.items()
        ]
    return pd.DataFrame(found)


def crossings(costs: pd.DataFrame) -> list[str]:
    """For each penalty, from how many active features on a trick is cheaper than the truth."""
    said = []
    for penalty in PENALTIES:
        by = costs.pivot(index="active", columns="dictionary", values=penalty)
        cheaper = by.index[by.drop(columns="true features").min(axis=1) < by["true features"]]
        said.append(
            f"{penalty}: the truth is cheapest up to {by.index[-1]} active features, the most "
            "that were tried."
            if cheaper.empty
            else f"{penalty}: a trick is cheaper than the truth at "
            f"{', '.join(map(str, cheaper))} active features."
        )
    return said


def detected(recipe: SyntheticRecipe) -> pd.DataFrame:
    """The detectors on given dictionaries."""
    code, rows = _rows(recipe)
    truth = ground_truth(recipe)
    axes = torch.eye(recipe.d_activation)
    given = {"true features": truth, "axes": axes, **tricks(recipe.d_activation)}
    found = []
    for name, atoms in given.items():
        used = code if name == "true features" else torch.relu(rows @ atoms.T)
        firing, l0 = (used > 0).sum(0), float((used > 0).sum(1).float().mean())
        error = (used @ atoms - rows).square().sum()
        fvu = float(error / (rows - rows.mean(0)).square().sum())
        says = detect(atoms, firing, len(rows), l0, fvu)
        found.append(
            {
                "dictionary": name,
                "active": recipe.mean_active,
                "FVU": fvu,
                "L0": l0,
                "smallest cosine": says.min_cosine,
                "flags": ", ".join(says.flags) or "none",
            }
        )
    return pd.DataFrame(found)


def chance(recipe: SyntheticRecipe) -> float:
    """MMCS of the true features with as many random atoms."""
    truth = ground_truth(recipe)
    return mmcs(truth, torch.randn(truth.shape, generator=generator(0, "random atoms")))


def _recipe(name: str) -> SyntheticRecipe:
    recipe = load_recipe(name)
    assert isinstance(recipe, SyntheticRecipe)
    return recipe


def _rows(recipe: SyntheticRecipe) -> tuple[Tensor, Tensor]:
    """True codes and the rows they make."""
    code = codes(recipe, "uncorrelated", ROWS, 0)
    return code, code @ ground_truth(recipe)


def _charged(code: Tensor) -> dict[str, float]:
    """Each penalty, mean over rows; where a number is zero to rounding nothing is charged."""
    code = torch.where(code > 1e-6, code, 0)
    powers = {name: code.pow(p) * (code > 0) for name, p in PENALTIES.items()}
    return {name: float(values.sum(1).mean()) for name, values in powers.items()}


def _learned(run: Run) -> pd.DataFrame:
    table = run.members.join(recovery(run))
    k = table["k"] if "k" in table else pd.Series(torch.nan, table.index)
    return pd.DataFrame(
        {
            "signature": table["signature"],
            "penalty": table["l1"].fillna(k),
            "FVU": table["fvu"],
            "L0": table["l0"],
            "MMCS of the truth": table["mmcs_truth"],
            "smallest cosine": table["min_cosine"],
            "flags": table["flags"].replace("", "none"),
        }
    )


def _costs(costs: pd.DataFrame) -> Figure:
    with figures.figure(1, len(PENALTIES), (4.6, 4)) as (made, axes):
        for place, penalty in zip(axes.flat, PENALTIES, strict=True):
            series = [
                (str(name), own["active"], own[penalty])
                for name, own in costs.groupby("dictionary", sort=False)
            ]
            figures.curves(
                place, series, title=penalty, x="features active in a row", y="penalty per row"
            )
            place.lines[-1].set(linestyle="--", marker="", zorder=3)  # the two tricks coincide
        axes[0, 0].legend()
        return made


def _trained(learned: pd.DataFrame, by_chance: float) -> Figure:
    with figures.figure(1, 2, (5.6, 4.2)) as (made, axes):
        for place, (rows, own) in zip(axes.flat, learned.groupby("rows", sort=False), strict=True):
            series = [
                (str(name), some["L0"], some["MMCS of the truth"])
                for name, some in own.sort_values("L0").groupby("signature", sort=False)
            ]
            figures.curves(
                place,
                series,
                title=f"{rows} features",
                x="L0, active features per row",
                y="MMCS of the truth",
                log="x",
            )
            place.axhline(by_chance, ls=":", lw=1, color=figures.GREY)
            place.set_ylim(0, 1.02)
        axes[0, -1].legend(title="signature", loc="center left", bbox_to_anchor=(1, 0.5))
        return made
