"""The 96-autoencoder study on synthetic rows: penalties x sizes x two data sets, and baselines.

Source: "Towards a Probabilistic Disentanglement of Neural Network Activations, Part 2". Its figures
again, from one sweep: `sweeps/toy_96.toml`.
"""

from __future__ import annotations

import pandas as pd
from rich.console import Console

from ensemble_sae.analysis import Histories, histories, recovery
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.synthetic import recipe_of
from ensemble_sae.pages.page import Page
from ensemble_sae.pages.tracks import tracks
from ensemble_sae.run import Run
from ensemble_sae.studies import toy_baselines, toy_figures
from ensemble_sae.studies.request import Request
from ensemble_sae.studies.steps import steps

ABOUT = (
    "Rows are sparse sums of known directions. A sweep over penalties and dictionary sizes learns "
    "dictionaries from them, on two data sets: features that are active independently of each "
    "other, and features that are active together. What was found is compared with the truth."
)
HEAT = (
    "Rows: the penalty l1, smallest at the bottom; columns: dictionary size over row width. The "
    "frame marks the largest number of each size. MMCS with the truth: mean over atoms of the "
    "largest cosine with a true feature; of the truth: mean over true features of the largest "
    "cosine with an atom; represented: share of true features with an atom of cosine above 0.9; "
    "FVU: share of the variance that is not reconstructed, 1 for whatever lies above; L0: active "
    "features per row; dead: share of features that fire on no held-out row."
)
DEAD = (
    "Features that fire on no held-out row, against the size of the dictionary, a curve for each "
    "penalty. Dashed: the number of true features. Dotted: all are dead."
)
TRACKS = (
    "True features by training step, at each size's best penalty. Learned: some atom has a cosine "
    "above 0.9 with it now. Unlearned: it was learned at an earlier checkpoint, and is not now. "
    "Same entry: learned, by the atom that learned it first."
)
FREQUENCY = (
    "True features in ten groups of equal size by how often they are active: mean over a group of "
    "the largest cosine with an atom, at each size's best penalty."
)
TSNE = (
    "t-SNE of rows for several decays of the features' frequency, coloured by the strongest "
    "feature of the row (ten features have a colour, the most frequent if any are). The faster "
    "the decay, the more rows share their strongest feature."
)
BASELINES = (
    "Classical methods on the same rows. MMCS: mean over the method's atoms of the largest cosine "
    "with a true feature; of the truth: mean over true features of the largest cosine with an "
    "atom. Rows: as many as it learned from. Published: the study's MMCS, on rows of 256 values "
    "made of 512 features; its direction and settings are not stated, and that of the truth fits."
)


def make(request: Request, console: Console) -> Page:
    """Train, compare with the truth, draw.

    Raises:
        UserError, Interrupted: as `Request.train`.
    """
    run = request.train(
        "toy_96", console, axes={"hook", "dict_ratio", "n_dict", "l1"}, held_out=True
    )
    page = Page("96 autoencoders on synthetic rows", ABOUT)
    with steps(console) as step:
        table = sound(run.members).join(recovery(run, step("Comparing with the truth")))
        best = best_of_sizes(table)
        found = histories(
            run, members=best.index, on_progress=step("Following features through checkpoints")
        )
        page.heading("What came out")
        page.points(findings(table, found))
        for hook, own in table.groupby("hook", sort=False):
            _draw(page, run, str(hook), own, best[best["hook"] == hook], found)
        known = request.out / "baselines.json"
        tell = step("Fitting baselines")
        baselines = toy_baselines.fitted(_stores(run), request.quick, known, tell)
        page.heading("Baselines")
        page.table(baselines.set_index("baseline"), BASELINES, toy_baselines.FORMATS)
        page.heading("What the rows look like")
        recipe = recipe_of(next(iter(_stores(run).values())))
        page.figure("tsne", toy_figures.tsne(recipe, step("Embedding rows")), TSNE)
    page.numbers(
        "members", table.drop(columns="density_histogram").reset_index().to_dict("records")
    )
    page.numbers("histories", found.table.reset_index().to_dict("records"))
    page.numbers("baselines", baselines.to_dict("records"))
    return page


def sound(table: pd.DataFrame) -> pd.DataFrame:
    """Without members that were frozen because they were no longer finite."""
    return table[~table["status"].str.startswith("frozen")]


def best_of_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """The member of each hook and size that represents the true features best, by size."""
    chosen = table.groupby(["hook", "dict_ratio"])["mmcs_truth"].idxmax()
    return table.loc[chosen].sort_values(["hook", "n_dict"])


def findings(table: pd.DataFrame, found: Histories) -> list[str]:
    """The published shapes, in this run's numbers."""
    return [
        f"{hook}: {line}"
        for hook, own in table.groupby("hook", sort=False)
        for line in _of_one(own, found)
    ]


def _of_one(table: pd.DataFrame, found: Histories) -> list[str]:
    """Of one data set."""
    top = table.sort_values("mmcs", na_position="first").iloc[-1]
    best = best_of_sizes(table).join(found.table)
    between = best["l1"].between(table["l1"].min(), table["l1"].max(), inclusive="neither")
    dead = (best["dead"] * best["n_dict"]).round().astype(int)
    lost = [f"{a} of {b}" for a, b in zip(best["unlearned"], best["learned"], strict=True)]
    return [
        f"the best MMCS is {top['mmcs']:.3f} (l1 {top['l1']:.2g}, ratio {top['dict_ratio']:g}); "
        f"there {100 * top['represented']:.0f}% of the true features have an atom of cosine "
        "above 0.9.",
        f"the penalty that represents most lies inside the grid for {between.sum()} of "
        f"{len(best)} sizes: {_by_ratio(best, [f'{l1:.2g}' for l1 in best['l1']])}.",
        f"dead features at those penalties: {_by_ratio(best, list(map(str, dead)))}.",
        "true features that were lost again at some checkpoint, of those ever learned: "
        f"{_by_ratio(best, lost)}.",
    ]


def _by_ratio(best: pd.DataFrame, values: list[str]) -> str:
    pairs = zip(values, best["dict_ratio"], strict=True)
    return ", ".join(f"{value} at ratio {ratio:g}" for value, ratio in pairs)


def _draw(
    page: Page, run: Run, hook: str, table: pd.DataFrame, best: pd.DataFrame, found: Histories
) -> None:
    truth = run.truth(hook)
    assert truth is not None  # `recovery` has refused other rows
    page.heading(f"Features that are {hook}")
    page.figure(f"heat_maps_{hook}", toy_figures.heat_maps(table), HEAT)
    if table["dead"].any():
        page.figure(f"dead_{hook}", toy_figures.dead(table, len(truth.atoms)), DEAD)
    else:
        page.text("No feature is dead: each of every member fires on some held-out row.")
    sizes = best["dict_ratio"].to_dict()
    counts = {f"{ratio:g}": found[int(str(member))].counts for member, ratio in sizes.items()}
    page.figure(f"tracks_{hook}", tracks(counts, "size / width"), TRACKS)
    page.figure(f"frequency_{hook}", toy_figures.by_frequency_of(run, best, truth), FREQUENCY)


def _stores(run: Run) -> dict[str, ChunkStore]:
    return {hook: ChunkStore.open(path) for hook, path in run.sweep["stores"].items()}
