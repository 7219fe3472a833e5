"""What the language model says of the default sweep: the tables of two pages, and how long it took.

    python benchmarks/laboratory.py --run runs/default

Evaluates all members, looks at the features of one, explains features of some and of baselines, and
replaces the blocks `<!-- evaluation -->` of docs/evaluation.md, `<!-- features -->` of
docs/features.md and `<!-- interpretation -->` of docs/interpretation.md. `--only NAME` does one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from readme import ROOT, replace

import ensemble_sae
from ensemble_sae.dispatch.devices import hardware
from ensemble_sae.evaluation import Request, evaluate
from ensemble_sae.inspection import TunedLens
from ensemble_sae.inspection.request import Desk
from ensemble_sae.interpretation.comparison import Comparison, by_rules
from ensemble_sae.interpretation.rules import RuleSettings
from ensemble_sae.interpretation.subjects import (
    BESIDE,
    default_members,
    of_baselines,
    of_members,
    sample,
)
from ensemble_sae.lm.text import contexts
from ensemble_sae.run import Run

FEATURES = 128  # of each dictionary that are explained
SIZES = (16, 64)  # tokens of a rule
SHOWN = 13  # rows of the frontier


def evaluated(run: Run) -> str:
    """All members in the language model, timed anew."""
    began = time.perf_counter()
    found = evaluate(run, Request(members=list(run.configurations), overwrite=True))
    seconds = time.perf_counter() - began
    (hook, known), *_ = found.references.items()
    rows = found.members
    table = run.members.join(rows[["ce", "ce_recovered", "kl"]])
    lines = [
        "| member | L0 | FVU | CE | CE recovered | KL |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    frontier = table[table["pareto"]].sort_values("l0")
    step = max(1, (len(frontier) - 1) // (SHOWN - 1))
    for member, row in frontier.iloc[::step].iterrows():
        here = rows.loc[member]
        lines.append(
            f"| `{row['name']}` | {here['l0']:.1f} | {here['fvu']:.3f} | {row['ce']:.3f} "
            f"| {row['ce_recovered']:.3f} | {row['kl']:.3f} |"
        )
    order = table["l0"].corr(table["ce_recovered"], method="spearman")
    between = int(((rows["ce"] > known["ce_clean"]) & (rows["ce"] < known["ce_zero"])).sum())
    falling, families = _falling(table)
    lines += [
        "",
        f"{found.settings['rows']:,} tokens of held-out text at `{hook}`: cross-entropy "
        f"{known['ce_clean']:.4f} clean, {known['ce_mean']:.4f} with the mean row, "
        f"{known['ce_zero']:.4f} with zeros. The identity recovers "
        f"{known['ce_recovered_identity']:.4f}, the zero dictionary "
        f"{known['ce_recovered_nothing']:.4f}.",
        "",
        f"{between} of {len(rows)} members lie between clean and zeros. In {falling} of {families} "
        "families of members that differ in l1 alone, CE recovered falls with every step at which "
        f"L0 falls; over all members the rank correlation of the two is {order:.2f}.",
        "",
        f"All {len(rows)} members took {seconds:.0f} s, loading included, on {hardware()}. "
        "Made by `python benchmarks/laboratory.py`.",
    ]
    return "\n".join(lines) + "\n"


def _falling(table: pd.DataFrame) -> tuple[int, int]:
    """Families in l1 in which CE recovered falls whenever L0 does, and how many there are."""
    families = [g for _, g in table.groupby(["signature", "dict_ratio", "bias_decay"])]
    good = [g.sort_values("l0")["ce_recovered"].is_monotonic_increasing for g in families]
    return sum(good), len(good)


def looked_at(run: Run) -> str:
    """One dictionary of the largest size: seconds of the pass, and of the effects."""
    largest = run.members[run.members["pareto"]].sort_values(["n_dict", "l0"]).index[-1]
    desk = Desk(run)
    began = time.perf_counter()
    text = desk.text
    loaded = time.perf_counter()
    features = desk.features(int(largest))
    passed = time.perf_counter()
    desk.features(int(largest), effects=True)
    done = time.perf_counter()
    return (
        f"For a dictionary of {len(features)} features on {features.settings['tokens']:,} tokens "
        f"({len(text.tokens):,} fragments), on {hardware()}: {loaded - began:.0f} s to load the "
        f"model and cut the text, {passed - loaded:.0f} s for the pass, {done - passed:.0f} s for "
        "the effects. Made by `python benchmarks/laboratory.py`.\n"
    )


def interpreted(run: Run) -> str:
    """Members and baselines explained by rules of two sizes."""
    desk, began = Desk(run), time.perf_counter()
    found = {size: Comparison() for size in SIZES}
    hook = run.members["hook"].iloc[0]
    silent: Callable[..., None] = lambda what, done, total: None  # noqa: E731
    subjects = [*of_members(desk, default_members(run), False, silent)]
    subjects += [*of_baselines(desk, hook, BESIDE, silent)]
    for name, features in subjects:
        chosen = sample(features, FEATURES, desk.recipe.seed)
        for size, comparison in found.items():
            rules = by_rules(features, chosen, RuleSettings(size=size))
            comparison.add(name, features, chosen, rules)
    l0 = run.members["l0"].to_dict()
    seconds = time.perf_counter() - began
    lines = [
        "| dictionary | L0 | active | top and random | top | random | no score "
        f"| top and random, {SIZES[1]} tokens |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    more = found[SIZES[1]].table()
    for name, row in found[SIZES[0]].table().iterrows():
        lines.append(_line(str(name), row, more.loc[name], l0))
    fragments, width = desk.text.tokens.shape
    lines += [
        "",
        f"{fragments:,} fragments of {width} tokens; {FEATURES} features of each dictionary, drawn "
        f"among the active ones. Rules of up to {SIZES[0]} tokens, in the last column of up to "
        f"{SIZES[1]}. Means over features with 95% intervals. {seconds:.0f} s on {hardware()}. "
        "Made by `python benchmarks/laboratory.py`.",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, row: Any, more: Any, l0: dict[Any, float]) -> str:
    number = name.partition(":")[0]
    sparse = f"{l0[int(number)]:.1f}" if number.isdigit() else ""
    active, every = (int(row["dictionary", part]) for part in ("active", "features"))
    cells = [_interval(row, kind) for kind in ("top_and_random", "top", "random")]
    undefined = int(row["top_and_random", "undefined"])
    said = f"`{name.partition(': ')[2] or name}`"
    last = _interval(more, "top_and_random")
    return (
        f"| {said} | {sparse} | {active} of {every} | {' | '.join(cells)} | {undefined} | {last} |"
    )


def _interval(row: Any, kind: str) -> str:
    return f"{row[kind, 'mean']:.2f} ± {row[kind, 'mean'] - row[kind, 'low']:.2f}"


def lenses(run: Run) -> str:
    """The tuned lens beside the logit lens, before each block, on held-out text."""
    desk = Desk(run)
    bridge, recipe = desk.bridge, desk.recipe.model_copy(update={"context": 64})
    hooks = [f"blocks.{layer}.hook_resid_pre" for layer in range(bridge.cfg.n_layers)]
    text = contexts(recipe, bridge, 100_000, held_out=False).tokens
    held_out = contexts(recipe, bridge, 10_000).tokens
    plain = TunedLens.identity(bridge, hooks).kl(bridge, held_out)
    tuned = TunedLens.train(bridge, text, hooks, steps=200, lr=3e-3).kl(bridge, held_out)
    lines = ["| before block | logit lens | tuned lens |", "|---|--:|--:|"]
    for layer, hook in enumerate(hooks):
        lines.append(f"| {layer} | {plain[hook]:.2f} | {tuned[hook]:.2f} |")
    lines += [
        "",
        "200 steps of 8 contexts of 64 tokens, lr 0.003, all hooks at once. Made by "
        "`python benchmarks/laboratory.py`.",
    ]
    return "\n".join(lines) + "\n"


BLOCKS: dict[str, tuple[str, Callable[[Run], str]]] = {
    "evaluation": ("evaluation.md", evaluated),
    "features": ("features.md", looked_at),
    "lenses": ("features.md", lenses),
    "interpretation": ("interpretation.md", interpreted),
}


def main() -> None:
    """Make the blocks and put them into their pages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/default"), help="a finished run")
    parser.add_argument("--only", choices=BLOCKS, help="one of the blocks")
    options = parser.parse_args()
    run = ensemble_sae.load(options.run)
    for name, (page, make) in BLOCKS.items():
        if options.only in (None, name):
            path, text = ROOT / "docs" / page, make(run)
            print(text)
            path.write_text(replace(path.read_text("utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
