"""What `interpret` does with its options: look at features, explain them, show the scores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ensemble_sae.errors import UserError
from ensemble_sae.evaluation.command import chosen as chosen_members
from ensemble_sae.files import read_json
from ensemble_sae.inspection.feature import Features
from ensemble_sae.inspection.request import Desk
from ensemble_sae.interpretation.answers import Answers
from ensemble_sae.interpretation.client import Client
from ensemble_sae.interpretation.comparison import LEAST, Comparison, by_rules
from ensemble_sae.interpretation.cost import estimate
from ensemble_sae.interpretation.protocol import interpret
from ensemble_sae.interpretation.questions import Protocol
from ensemble_sae.interpretation.subjects import (
    BESIDE,
    default_members,
    of_baselines,
    of_members,
    sample,
)
from ensemble_sae.run import load
from ensemble_sae.terminal import INTERRUPTED, Ended, Show, progress

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "interpreted"


@dataclass(frozen=True)
class Options:
    """The options of `python -m ensemble_sae.interpret`; see there."""

    members: str | None
    features: int
    fragments: int
    width: int
    per_document: int
    baselines: bool
    effects: bool
    base_url: str | None
    explainer: str | None
    simulator: str | None
    key_variable: str | None
    concurrency: int
    price_in: float | None
    price_out: float | None
    yes: bool
    model: str | None
    dataset: str | None
    device: str | None


def execute(folder: Path, options: Options) -> int:
    """Explain, score and print; returns the exit code: 0, or 130 after SIGINT.

    Raises:
        UserError: no such members, no language model, an endpoint that does not answer.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    client, protocol = _asked(options)
    run, console = load(folder), Console()
    members = chosen_members(run, options.members) or default_members(run)
    hooks = {run.configurations[m].hook for m in members if m in run.configurations}
    desk = Desk(
        run,
        options.fragments,
        options.width,
        options.per_document,
        options.model,
        options.dataset,
        options.device,
    )
    found, settings = Comparison(), {}
    seen: dict[str, tuple[Features, Any]] = {}
    try:
        with progress("loading the model") as show:
            for name, features in _subjects(desk, members, sorted(hooks), options, show):
                settings = _settings(features, options)
                _check_enough(features)
                places = sample(features, options.features, desk.recipe.seed)
                found.add(name, features, places, by_rules(features, places))
                seen[name] = features, places
        found.write(run.path / FOLDER, settings)
        if client is not None and protocol is not None:
            _ask(seen, found, client, protocol, options, console, run.path)
    except KeyboardInterrupt:
        console.print("Interrupted. The features of members and what was answered are kept.")
        return Ended(INTERRUPTED, interrupted=True, run=run.path)
    found.write(run.path / FOLDER, settings)
    _print(found, console, settings)
    console.print(f"Every feature that was scored: {run.path / FOLDER}", highlight=False)
    written = {path.stem: read_json(path) for path in (run.path / FOLDER).glob("by_*.json")}
    return Ended(0, run=run.path, folder=run.path / FOLDER, settings=settings, **written)


def _asked(options: Options) -> tuple[Client | None, Protocol | None]:
    """Whom to ask; nobody without --base-url. Complains before anything is computed."""
    if options.base_url is None:
        if options.explainer or options.simulator:
            raise UserError(
                "Models are named, but nobody to ask.",
                next_step="--base-url https://.../v1, or leave out --explainer and --simulator",
            )
        return None, None
    if not options.explainer:
        raise UserError("Which model explains?", next_step="--explainer NAME")
    client = Client(options.base_url, options.key_variable, options.concurrency)
    return client, Protocol(options.explainer, options.simulator or options.explainer)


def _subjects(
    desk: Desk, members: list[int], hooks: list[str], options: Options, show: Show
) -> Iterator[tuple[str, Features]]:
    """Members, then baselines of every hook."""
    several = len(hooks) > 1

    def on_progress(what: str, done: int, total: int) -> None:
        show(done, total, f"{what} {100 * done / total:.0f}%")

    yield from of_members(desk, members, options.effects, on_progress)
    if not options.baselines:
        return
    for name, features in chain.from_iterable(
        of_baselines(desk, hook, BESIDE, on_progress) for hook in hooks
    ):
        yield (f"{name} at {features.settings['hook']}" if several else name), features


def _ask(
    seen: dict[str, tuple[Features, Any]],
    found: Comparison,
    client: Client,
    protocol: Protocol,
    options: Options,
    console: Console,
    folder: Path,
) -> None:
    """Estimate, ask whether to send, then explain and simulate every dictionary's features."""
    answers = Answers(folder / FOLDER / "answers")
    asked = {}
    for name, (features, places) in seen.items():
        words = features.vocabulary
        asked[name] = features.examples.of(places), lambda token, words=words: words.get(token, "")
    for name, (examples, texts) in asked.items():
        expected = estimate(examples, texts, protocol, answers)
        console.print(f"[bold]{name}[/bold]", highlight=False)
        console.print(expected.text(options.price_in, options.price_out), highlight=False)
    if not options.yes and not _agreed(client, console):
        console.print("Nothing was sent.")
        return
    with progress("asking") as show:
        for name, (examples, texts) in asked.items():

            def on_progress(done: int, total: int, name: str = name) -> None:
                show(done, total, f"{name}: {done} of {total} features")

            answer = interpret(examples, texts, protocol, client, answers, on_progress)
            found.add_models(name, answer)


def _agreed(client: Client, console: Console) -> bool:
    if not sys.stdin.isatty():
        console.print("To send this, say --yes.")
        return False
    return console.input(f"Send this to {client.address}? \\[y/N] ").strip().lower() in ("y", "yes")


def _settings(features: Features, options: Options) -> dict[str, Any]:
    """Of what text the scores are."""
    about = ("model", "dataset", "seed", "fragments", "width")
    return {name: features.settings[name] for name in about} | {"features": options.features}


def _check_enough(features: Features) -> None:
    """See that there are fragments to explain and to score.

    Raises:
        UserError: the text gives too few.
    """
    found = features.settings["fragments"]
    if found < LEAST:
        raise UserError(
            "The text gives too few fragments to explain features and to score explanations.",
            found=f"{found} fragments of {features.settings['width']} tokens",
            allowed=f"{LEAST} or more",
            next_step="more text, a smaller --width, or a larger --per-document",
        )


def _print(found: Comparison, console: Console, settings: dict[str, Any]) -> None:
    about = f"{settings['fragments']:,} fragments of {settings['width']} tokens"
    console.print(_rich(f"Explained by rules ({about})", found.table("by_rules")))
    if found.by_models:
        console.print(_rich("Explained by language models", found.table("by_models")))
    console.print(
        "Correlations of what an explanation foretells with what a feature does on other\n"
        "fragments: mean over features, 95% interval. ?: features without a score.",
        soft_wrap=True,
        highlight=False,
    )


def _rich(title: str, table: pd.DataFrame) -> Table:
    shown = Table(title=title, title_justify="left", header_style="bold", pad_edge=False, box=None)
    shown.add_column("dictionary")
    for name in ("active", "top and random", "top", "random", "?"):
        shown.add_column(name, justify="right", no_wrap=True)
    for dictionary, row in table.iterrows():
        active, every = (int(row["dictionary", part]) for part in ("active", "features"))
        cells = [f"{active} of {every}"]
        cells += [_interval(row, kind) for kind in ("top_and_random", "top", "random")]
        shown.add_row(str(dictionary), *cells, str(int(row["top_and_random", "undefined"])))
    return shown


def _interval(row: Any, kind: str) -> str:
    mean, low = row[kind, "mean"], row[kind, "low"]
    return f"{mean:.3f} ± {mean - low:.3f}" if low == low else f"{mean:.3f}"
