"""The frontier of a finished run, and whether its families are monotone in l1.

    python benchmarks/frontier.py runs/default

In each family (signature, ratio, bias decay) L0 must fall and FVU must rise with l1.
`benchmarks/readme.py` puts the table into the README.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

import ensemble_sae


def families(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(name, members in order of l1) for every signature, ratio and bias decay."""
    by = ["signature", "dict_ratio", "bias_decay"]
    found = []
    for (signature, ratio, decay), members in table.groupby(by):
        found.append((f"{signature} r={ratio:g} bd={decay:g}", members.sort_values("l1")))
    return found


def problems(table: pd.DataFrame) -> list[str]:
    """Families whose L0 does not fall or FVU does not rise with l1, or that are degenerate."""
    said = []
    for name, members in families(table):
        l0, fvu, n = members["l0"], members["fvu"], members["n_dict"].iloc[0]
        if not l0.is_monotonic_decreasing:
            said.append(f"{name}: L0 rises somewhere: {[round(v, 2) for v in l0]}")
        if not fvu.is_monotonic_increasing:
            said.append(f"{name}: FVU falls somewhere: {[round(v, 4) for v in fvu]}")
        if (l0 < 0.5).all() or (l0 > 0.95 * n).all():
            said.append(f"{name}: degenerate: L0 {l0.min():.1f}..{l0.max():.1f} of {n}")
    return said


def markdown(run: ensemble_sae.run.Run, rows: int = 12) -> str:
    """The frontier as a Markdown table, thinned out evenly to `rows` members."""
    best = run.members[run.members["pareto"]].sort_values("l0")
    step = max(1, len(best) // rows)
    lines = ["| member | L0 | FVU | dead |", "|---|---|---|---|"]
    lines += [
        f"| `{m['name']}` | {m.l0:.1f} | {m.fvu:.3f} | {100 * m.dead:.1f}% |"
        for _, m in best.iloc[::step].iterrows()
    ]
    seconds, shown = run.status["seconds"], len(best.iloc[::step])
    lines += [
        "",
        f"{shown} of the {len(best)} Pareto-best of {len(run.members)} members, on held-out rows; "
        f"harvest, training and evaluation took {seconds / 60:.1f} minutes on "
        f"{run.status['hardware']}. Made by `make sweep`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the frontier; 1 if a family is not monotone or degenerate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    run = ensemble_sae.load(options.run)
    print(markdown(run))
    found = problems(run.members)
    for line in found:
        print(line)
    count = len(families(run.members))
    print(
        f"{count - len({p.split(':')[0] for p in found})} of {count} families are monotone in l1."
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
