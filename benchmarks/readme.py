"""The pages' tables, from measured results: two of the README, and that of docs/kernels.md.

    python benchmarks/readme.py --run runs/default --bench benchmarks/results/throughput.json

Each replaces the block between its two marks (`<!-- frontier -->`, `<!-- throughput -->`,
`<!-- kernels -->`). `--run` also draws docs/figures/pareto_default.png.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import frontier
from show import auto_takes, ratio, share

import ensemble_sae

ROOT = Path(__file__).resolve().parent.parent
README, KERNELS = ROOT / "README.md", ROOT / "docs" / "kernels.md"
PICTURE = ROOT / "docs" / "figures" / "pareto_default.png"
PAGE = "benchmarks/results/throughput.md"


def throughput(report: dict[str, Any]) -> str:
    """The default kernel against the loops and the dense limit, as Markdown."""
    lines = [
        "| members | signature | active | over the loop | over the compiled loop "
        "| of the dense limit |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for cell in _headline(report):
        ratios = [ratio(cell, over, "auto") for over in ("loop", "compiled", "of_limit")]
        lines.append(f"| {_who(cell)} | {' | '.join(ratios)} |")
    lines += [
        "",
        "*Active*: the share of features that are active in a row; about a half are before training"
        " makes codes sparse. *The dense limit*: the time of the five bare matrix products of a"
        f" dense step; sparse codes need less than that. {_conditions(report)} More, and how to"
        f" read it: [throughput.md]({PAGE}), made by `make bench`.",
    ]
    return "\n".join(lines) + "\n"


def kernels(report: dict[str, Any]) -> str:
    """The sparse and the dense kernel against the limit and the loop, as Markdown."""
    lines = [
        "| members | signature | active | sparse, of limit | dense, of limit | sparse, over loop "
        "| dense, over loop | `auto` takes |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for cell in _headline(report):
        ratios = [
            ratio(cell, over, name) for over in ("of_limit", "loop") for name in ("sparse", "dense")
        ]
        lines.append(f"| {_who(cell)} | {' | '.join(ratios)} | {auto_takes(cell)} |")
    return "\n".join([*lines, "", _conditions(report)]) + "\n"


def _headline(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells with the most members of a shape, with a training worker's allocator settings."""
    cells = next(iter(report["steps"].values()))
    most: dict[str, int] = {}
    for cell in cells:
        most[cell["shape"]] = max(cell["members"], most.get(cell["shape"], 0))
    return [cell for cell in cells if cell["members"] == most[cell["shape"]]]


def _who(cell: dict[str, Any]) -> str:
    """The first columns of both tables."""
    dicts = sorted(set(cell["dicts"]))
    n = f"{dicts[0]}" if len(dicts) == 1 else f"{dicts[0]}..{dicts[-1]}"
    shape = f"{cell['members']} of d {cell['d']}, n {n}, B {cell['batch']}"
    return f"{shape} | `{cell['signature']}` | {share(cell['active'])}"


def _conditions(report: dict[str, Any]) -> str:
    about = report["about"]
    versions = ", ".join(
        f"{name} {about['packages'][name].partition('+')[0]}"
        for name in ("torch", "numba")
        if name in about["packages"]
    )
    return f"Medians of ratios within rounds; {about['hardware']}, float32, {versions}."


def write_throughput(report: dict[str, Any]) -> None:
    """Rewrite the blocks that are made from throughput.json."""
    for page, mark, text in (
        (README, "throughput", throughput(report)),
        (KERNELS, "kernels", kernels(report)),
    ):
        page.write_text(replace(page.read_text(encoding="utf-8"), mark, text), encoding="utf-8")


def replace(page: str, mark: str, text: str) -> str:
    """The page with another block between the two marks."""
    block = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    return block.sub(lambda found: found[1] + text + found[2], page)


def main() -> None:
    """Rewrite the blocks for which results are given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="a finished run of the default sweep")
    parser.add_argument("--bench", type=Path, help="throughput.json")
    options = parser.parse_args()
    if options.run:
        run = ensemble_sae.load(options.run)
        page = replace(README.read_text(encoding="utf-8"), "frontier", frontier.markdown(run))
        README.write_text(page, encoding="utf-8")
        frontier.draw(run, PICTURE)
    if options.bench:
        write_throughput(json.loads(options.bench.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
