"""Features of a first layer that tell a token's position, and what becomes of them past the last.

Source: Chughtai and Lau 2024, "Understanding Positional Features in Layer 0 SAEs". Dictionaries of
`blocks.0.hook_resid_pre`, trained on contexts shorter than the model's: `sweeps/positions.toml`.
Of a model without learned absolute positions, or at another hook, scores are estimated from text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from ensemble_sae.analysis.position_curves import (
    PositionAxes,
    along,
    position_axes,
    traced,
)
from ensemble_sae.analysis.positions import Span, enumerated, sampled
from ensemble_sae.config.recipe import Recipe
from ensemble_sae.data.hooks import Hook
from ensemble_sae.errors import UserError
from ensemble_sae.lm.embeddings import HOOK, Embeddings, embeddings, rows_of_text
from ensemble_sae.lm.load import load_model
from ensemble_sae.lm.origin import origin
from ensemble_sae.lm.text import Text, contexts
from ensemble_sae.pages.page import Page
from ensemble_sae.run import Run
from ensemble_sae.studies import positions_page
from ensemble_sae.studies.positions_page import Found
from ensemble_sae.studies.request import Request
from ensemble_sae.studies.steps import Tell, steps

AXES = {"signature", "dict_ratio", "n_dict", "l1", "k", "seed", "bias_decay"}
ROWS, FEW_ROWS = 200_000, 20_000  # of held-out text
EVERY = 16  # of the tokens, in the smaller version
TOKENS = 2_000  # the most frequent ones, where scores are estimated from text
NUMBERS = 1 << 20  # of the code of a tile: 4 MiB stay in a CPU's cache


@dataclass(frozen=True)
class Source:
    """What members are scored on.

    Attributes:
        bridge: the language model.
        text: held-out contexts of `positions` tokens.
        span: the positions that were trained on.
        known: the embeddings, where they are all that a row is made of; else why they are not.
        every: take each so many-th token of them.
    """

    bridge: Any
    text: Text
    positions: int
    span: Span
    known: Embeddings | UserError
    every: int = 1


def make(request: Request, console: Console) -> Page:
    """Train, score every feature, go past the trained context, draw.

    Raises:
        UserError, Interrupted: as `Request.train`; a member predicts other rows than it reads.
    """
    run = request.train("positions", console, axes=AXES, held_out=True, rows=Recipe)
    source = _source(run, request.quick)
    with steps(console) as step:
        found = studied(run, source, step("Scoring features"))
    axes = _axes(source)
    page = Page("Positional features of a first layer", positions_page.ABOUT)
    table = tabled(run, found)
    positions_page.draw(page, run, table, found, axes, source.known)
    page.numbers("members", table.reset_index().to_dict("records"))
    page.numbers("features", {str(member): _features(own) for member, own in found.items()})
    page.numbers("curves", {str(member): _curves(own) for member, own in found.items()})
    return page


def studied(run: Run, source: Source, tell: Tell) -> dict[int, Found]:
    """Every member that is finite: its scores, its curves, the positions that it tells."""
    members = [int(m) for m in run.members.index[~run.members["status"].str.startswith("frozen")]]
    found = {}
    for done, member in enumerate(members):
        tell(done, len(members))
        found[member] = _of_one(run, member, source)
    tell(len(members), len(members))
    return found


def _of_one(run: Run, member: int, source: Source) -> Found:
    sae = run.sae(member)
    points = Hook.parse(sae.config.hook).inputs
    if isinstance(source.known, Embeddings):
        tiles = source.known.tiles(NUMBERS // sae.config.n_dict, source.every)
        scores = enumerated(sae, tiles, source.span)
    else:
        rows = rows_of_text(source.bridge, points, source.text)
        scores = sampled(sae, rows, _frequent(source.text), source.positions, source.span)
    rows = rows_of_text(source.bridge, points, source.text)
    curves = along(sae, rows, source.positions, source.span, scores.by_peak)
    if not isinstance(source.known, Embeddings):
        return Found(scores, curves, None)
    true = source.known.positions
    told = traced(sae, scores.by_position, scores.by_peak, true, source.span)
    return Found(scores, curves, told)


def _source(run: Run, quick: bool) -> Source:
    """The model and a text of contexts that are longer than the trained ones, if it takes them."""
    recipe = origin(run)
    bridge = load_model(recipe.model, dtype=recipe.model_dtype)
    # Twice the trained context shows what comes after it; a model may have a hundred times.
    reach = min(bridge.cfg.n_ctx, 2 * recipe.context)
    longer = recipe.model_copy(update={"context": reach})
    text = contexts(longer, bridge, FEW_ROWS if quick else ROWS)
    span = (1, recipe.context)  # position 0 holds BOS and nothing else
    every = EVERY if quick else 1
    return Source(bridge, text, reach, span, _known(bridge, recipe, reach), every)


def _known(bridge: Any, recipe: Recipe, reach: int) -> Embeddings | UserError:
    """The embeddings, or why they are not all that a row is made of."""
    try:
        if recipe.hooks != (HOOK,):
            raise UserError(
                "Rows at this hook are more than a token's and a position's embedding.",
                found=", ".join(recipe.hooks),
                allowed=HOOK,
            )
        return embeddings(bridge).up_to(reach)
    except UserError as error:
        return error


def _axes(source: Source) -> PositionAxes | None:
    if not isinstance(source.known, Embeddings):
        return None
    return position_axes(source.known.positions, source.span)


def _frequent(text: Text) -> Tensor:
    """The most frequent tokens of the text."""
    counts = torch.bincount(text.tokens[text.is_read])
    order = counts.argsort(descending=True, stable=True)[:TOKENS]
    return order[counts[order] > 0]


def tabled(run: Run, found: dict[int, Found]) -> pd.DataFrame:
    """One row per member: how many positional features, what they tell, the error along."""
    rows, sizes = [], run.members["n_dict"].to_dict()
    for member, own in found.items():
        start, stop = own.scores.span
        end = len(own.curves.rows)
        last = max(stop, end - (end - stop) // 4)  # the last quarter of what lies beyond
        chosen = own.scores.by_peak
        row = {
            "member": run.members.loc[member, "name"],
            "n_dict": sizes[member],
            "positional": len(chosen),
            "by share": int((own.scores.share > 0.5).sum()),
            "positions told": own.told.explained if own.told else None,
            "L0": own.curves.mean_l0(start, stop),
            "FVU": own.curves.mean_fvu(start, stop),
        }
        if end > stop:
            row["FVU past"] = own.curves.mean_fvu(stop, end)
            row["FVU at the end"] = own.curves.mean_fvu(last, end)
            row["L0 at the end"] = own.curves.mean_l0(last, end)
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(list(found), name="id"))


def _features(own: Found) -> list[dict[str, Any]]:
    """The positional features, in the order of their peaks."""
    s = own.scores
    return [
        {
            "feature": f,
            "peak": int(s.peak[f]),
            "position score": float(s.position[f]),
            "token score": float(s.token[f]),
            "share": float(s.share[f]),
        }
        for f in s.by_peak.tolist()
    ]


def _curves(own: Found) -> dict[str, Any]:
    c = own.curves
    active = c.active.sum(0)
    return {"fvu": c.fvu.tolist(), "l0": c.l0.tolist(), "active positional": active.tolist()}
