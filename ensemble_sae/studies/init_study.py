"""Where training starts, and how soon the truth is found from there.

Source: Peigné 2023, "Taking features out of superposition with sparse autoencoders more quickly
with informed initialization" (SERI MATS 3.0). Three scenarios: rows of 128 values made of 256, 512
or 1,024 features, and a dictionary of as many atoms; several starts, several seeds.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from torch import Tensor

from ensemble_sae.data.sample import sample_rows
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.units import Units
from ensemble_sae.dispatch.initial import Initials
from ensemble_sae.metrics.matching import mmcs
from ensemble_sae.pages import figures
from ensemble_sae.pages.page import Page
from ensemble_sae.run import Run
from ensemble_sae.signatures import resolve
from ensemble_sae.studies.request import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACHED = (0.9, 0.95, 0.98, 0.99)
SCENARIOS = (256, 512, 1024)
ABOUT = (
    "The same autoencoders from different first directions: random ones, the singular vectors of "
    "a sample, rows of the data, and rows of which a share are vectors of rare features. MMCS: "
    "mean over true features of the largest cosine with an atom."
)
CURVES = (
    "MMCS against the training step, mean over seeds; the band is from the lowest to the highest "
    "seed. Step 0 is the start itself."
)
RARE = (
    "Steps to an MMCS of {reached} against the share of directions that are rare-feature vectors, "
    "mean over seeds; bars from the fewest to the most. Dashed: rows alone."
)
TABLE = (
    "Mean over seeds, and the standard deviation. Steps are seen to {every}; – where no seed got "
    "there in {steps} steps, and in brackets how many did where not all of them."
)


def make(request: Request, console: Console) -> Page:
    """Train every scenario, follow the MMCS through its checkpoints, draw.

    Raises:
        UserError, Interrupted: as `Request.train`.
    """
    page = Page("Where dictionaries start", ABOUT)
    for name, settings in _scenarios(request.quick):
        axes = {"init", "seed"}
        run = request.train("init_study", console, settings=settings, folder=name, axes=axes)
        _draw(page, name, run, followed(run))
    return page


def _scenarios(quick: bool) -> list[tuple[str, tuple[str, ...]]]:
    """The folder and the settings of each."""
    if quick:
        return [("small", ())]
    return [
        (f"features_{n}", (f"activations.recipe=init_{n}", f"grid.n_dict={n}")) for n in SCENARIOS
    ]


def followed(run: Run) -> pd.DataFrame:
    """MMCS by step and member: at the start, as step 0, and at every checkpoint."""
    truth, members = _truth(run), run.configurations
    curves = {0: _at_start(run, truth)}
    for point in run.checkpoints:
        curves[point.step] = {
            m: mmcs(truth, run.sae(m, checkpoint=point).dictionary) for m in members
        }
    return pd.DataFrame(curves).T.sort_index()


def _at_start(run: Run, truth: Tensor) -> dict[int, float]:
    (path,) = run.sweep["stores"].values()
    store, train = ChunkStore.open(path), run.sweep["sweep"]["train"]
    units = Units.of(store, run.sweep["sweep"]["activations"]["normalise"])
    found = {}
    for member, config in run.configurations.items():
        initials = Initials(
            train["seed"],
            config.n_dict,
            lambda count: units.enter(sample_rows(store, count, train["seed"])),
        )
        params, buffers = initials.make(config)
        found[member] = mmcs(truth, resolve(config.signature).dictionary(params, buffers))
    return found


def _truth(run: Run) -> Tensor:
    (hook,) = run.sweep["stores"]
    truth = run.truth(hook)
    assert truth is not None  # the study's own recipes are synthetic
    return truth.atoms


def _draw(page: Page, name: str, run: Run, curves: pd.DataFrame) -> None:
    inits = run.members["init"]
    d = run.members["d_activation"].iloc[0]
    n = run.members["n_dict"].iloc[0]
    page.heading(f"{n:,} features in {d} dimensions")
    page.figure(f"mmcs_{name}", _curves(curves, inits), CURVES)
    mixed = inits[inits.str.contains(":")]
    level = _level_of_all(curves[list(mixed.index)])
    if mixed.nunique() > 1 and level is not None:
        page.figure(f"rare_{name}", _by_share(curves, inits, level), RARE.format(reached=level))
    steps = sorted(curves.index)
    every = max(b - a for a, b in pairwise(steps))
    caption = TABLE.format(every=every, steps=f"{steps[-1]:,}")
    table = _table(curves, inits)
    page.table(table, caption, {})
    page.numbers(name, {"table": table.reset_index().to_dict("records")})
    page.numbers(f"{name} curves", {str(m): curves[m].to_dict() for m in curves})


def _reached(curves: pd.DataFrame, level: float) -> pd.Series[float]:
    """The first step of each member at which the level is reached; NaN where it never is."""
    there = curves >= level
    return there.idxmax().where(there.any()).astype(float)


def _table(curves: pd.DataFrame, inits: pd.Series[str]) -> pd.DataFrame:
    rows = {}
    for init, own in inits.groupby(inits, sort=False):
        some = curves[list(own.index)]
        row = {
            "MMCS at the start": _spread(some.iloc[0], 3),
            "at the end": _spread(some.iloc[-1], 3),
        }
        for level in REACHED:
            row[f"steps to {level}"] = _spread(_reached(some, level), 0)
        rows[str(init)] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("start")


def _spread(values: pd.Series[float], digits: int) -> str:
    known = values.dropna()
    if known.empty:
        return "–"
    text = f"{known.mean():,.{digits}f}"
    if len(known) > 1:
        text += f" ± {known.std():,.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def _curves(curves: pd.DataFrame, inits: pd.Series[str]) -> Figure:
    with figures.figure(1, 1, (8.5, 4.8)) as (made, axes):
        place = axes[0, 0]
        families = [(str(init), curves[list(own.index)]) for init, own in inits.groupby(inits)]
        series = [(name, own.index, own.mean(axis=1)) for name, own in families]
        figures.curves(
            place, series, title="How soon the truth is found", x="training step", y="MMCS"
        )
        for line, (_, own) in zip(list(place.lines), families, strict=True):
            line.set_marker("")
            place.fill_between(
                own.index, own.min(axis=1), own.max(axis=1), color=line.get_color(), alpha=0.15
            )
        for level in REACHED:
            place.axhline(level, ls=":", lw=1, color=figures.GREY)
        place.set_ylim(0, 1.02)
        place.legend(title="start", loc="center left", bbox_to_anchor=(1, 0.5))
        return made


def _level_of_all(curves: pd.DataFrame) -> float | None:
    """The highest level that every member reached."""
    return max((level for level in REACHED if (curves.max() >= level).all()), default=None)


def _by_share(curves: pd.DataFrame, inits: pd.Series[str], level: float) -> Figure:
    reached = _reached(curves, level)
    with figures.figure(1, 1, (7, 4)) as (made, axes):
        place = axes[0, 0]
        mixed = inits[inits.str.contains(":")].str.split(":", expand=True)
        for number, (kind, own) in enumerate(mixed.groupby(0)):
            aside = 1 + 0.04 * number  # bars of one share side by side
            by = reached[own.index].groupby(100 * aside * own[1].astype(float))
            middle = by.mean()
            bars = [middle - by.min(), by.max() - middle]
            colour, marker = figures.COLOURS[number], figures.MARKERS[number]
            place.errorbar(
                middle.index, middle, bars, color=colour, marker=marker, capsize=3, label=kind
            )
        place.axhline(reached[inits == "rows"].mean(), ls="--", color=figures.GREY, lw=1)
        figures.logarithmic(place, "x")
        place.set_title("Rare-feature vectors among the first directions")
        place.set_xlabel("share of rare-feature vectors (%)")
        place.set_ylabel(f"steps to an MMCS of {level}")
        place.legend(title="vectors")
        return made
