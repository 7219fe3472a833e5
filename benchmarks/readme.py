"""The README's two tables, from measured results.

    python benchmarks/readme.py --run runs/default --bench benchmarks/results/throughput.json

Each replaces the block between its two marks (`<!-- frontier -->`, `<!-- throughput -->`).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import frontier

import ensemble_sae

MEDIAN = 1  # of [lower quartile, median, upper quartile]
README = Path(__file__).resolve().parent.parent / "README.md"


def throughput(report: dict[str, Any]) -> str:
    """Speed-up over the loops and share of the limit, freed memory kept, as Markdown."""
    lines = [
        "| shape | members | over the loop | over the compiled loop | share of the limit |",
        "|---|--:|--:|--:|--:|",
    ]
    for cell in report["steps"]["kept"]:
        if cell["members"] not in (1, 8, 12, 32):
            continue
        over, dicts = cell["speedup_over"], sorted(set(cell["dicts"]))
        n = f"{dicts[0]}" if len(dicts) == 1 else f"{dicts[0]}..{dicts[-1]}"
        compiled = f"{over['compiled'][MEDIAN]:.2f}x" if "compiled" in over else ""
        lines.append(
            f"| d {cell['d']}, n {n}, B {cell['batch']} | {cell['members']} "
            f"| {over['loop'][MEDIAN]:.2f}x | {compiled} "
            f"| {100 * cell['of_limit']['ensemble'][MEDIAN]:.0f}% |"
        )
    about = report["about"]
    lines += [
        "",
        f"Medians of ratios within rounds, {about['hardware']}, float32; the limit is the time of "
        "the step's five bare matrix products. More, and how to read it: "
        "[throughput.md](benchmarks/results/throughput.md), made by `make bench`.",
    ]
    return "\n".join(lines) + "\n"


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
    page = README.read_text(encoding="utf-8")
    if options.run:
        page = replace(page, "frontier", frontier.markdown(ensemble_sae.load(options.run)))
    if options.bench:
        report = json.loads(options.bench.read_text(encoding="utf-8"))
        page = replace(page, "throughput", throughput(report))
    README.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
