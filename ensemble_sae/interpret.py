"""`python -m ensemble_sae.interpret`: do features of members mean something that can be said?

python -m ensemble_sae.interpret runs/default
python -m ensemble_sae.interpret runs/default --members pareto --features 200 --effects
python -m ensemble_sae.interpret runs/default --members 17 --base-url http://localhost:8000/v1 \
    --explainer NAME --simulator NAME

Without --base-url nothing is sent anywhere: simple rules are fitted instead, and scored in the same
way. With it, the cost is estimated first, and answers are kept: nothing is asked twice.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ensemble_sae.command_line import Json, RunFolder
from ensemble_sae.command_line import run as run_command
from ensemble_sae.terminal import end


def main(
    run: RunFolder,
    members: Annotated[
        str | None,
        typer.Option(help="pareto, all, or ids as 3,8-12; default: five of the Pareto-best."),
    ] = None,
    features: Annotated[
        int, typer.Option(min=1, help="Features per dictionary, drawn at random.")
    ] = 100,
    fragments: Annotated[int, typer.Option(min=40, help="Fragments of text, at most.")] = 50_000,
    width: Annotated[int, typer.Option(min=4, help="Tokens per fragment.")] = 64,
    per_document: Annotated[
        int, typer.Option(min=1, help="Fragments per document, where documents are few.")
    ] = 8,
    baselines: Annotated[bool, typer.Option(help="Also neuron basis, random, PCA and ICA.")] = True,
    effects: Annotated[bool, typer.Option("--effects", help="Ablate, steer, drop tokens.")] = False,
    base_url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible endpoint to ask.")
    ] = None,
    explainer: Annotated[str | None, typer.Option(help="Model that explains.")] = None,
    simulator: Annotated[
        str | None, typer.Option(help="Model that simulates; default: the explainer.")
    ] = None,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable of the key; '' for none.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    price_in: Annotated[float | None, typer.Option(help="Of a million tokens sent.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Of a million tokens answered.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send without asking.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Name or folder, in place of the rows' own model.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Other text.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    as_json: Json = False,
) -> None:
    """Explain features of members and of baselines, and score the explanations."""
    from ensemble_sae.interpretation.command import Options, execute

    options = Options(
        members=members,
        features=features,
        fragments=fragments,
        width=width,
        per_document=per_document,
        baselines=baselines,
        effects=effects,
        base_url=base_url,
        explainer=explainer,
        simulator=simulator,
        key_variable=key_variable or None,
        concurrency=concurrency,
        price_in=price_in,
        price_out=price_out,
        yes=yes,
        model=model,
        dataset=dataset,
        device=device,
    )
    end(lambda: execute(run, options), as_json)


if __name__ == "__main__":
    run_command(main)
