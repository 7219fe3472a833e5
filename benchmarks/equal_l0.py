"""The table of `docs/signatures.md`: FVU of several kinds of autoencoder at equal L0.

    python -m ensemble_sae.big_sweep equal_l0
    python benchmarks/equal_l0.py runs/equal_l0 [--docs]

Members of one signature make a frontier of FVU over L0; it is read at the same few L0 by linear
interpolation of log FVU over log L0, never beyond the members that there are.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import pandas as pd
from readme import replace

import ensemble_sae

L0 = (8, 12, 16, 24, 32, 48, 64)
PLAIN = "untied"
DOCS = Path(__file__).parent.parent / "docs" / "signatures.md"


def fvu_at(frontier: pd.DataFrame, l0: float) -> float:
    """FVU at an L0, between the two members next to it; NaN beyond them (2% are granted)."""
    points = sorted(zip(frontier["l0"], frontier["fvu"], strict=True))
    if not points[0][0] * 0.98 <= l0 <= points[-1][0] * 1.02:
        return math.nan
    for (a, low), (b, high) in itertools.pairwise(points):
        if l0 <= b or (b, high) == points[-1]:
            share = (math.log(l0) - math.log(a)) / (math.log(b) - math.log(a))
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return math.nan


def table(members: pd.DataFrame) -> pd.DataFrame:
    """Signatures by L0: FVU."""
    rows = {
        signature: [fvu_at(same, l0) for l0 in L0]
        for signature, same in members.groupby("signature", sort=False)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(L0))


def markdown(found: pd.DataFrame) -> str:
    """The table in Markdown, the best of a column in bold."""
    lines = ["| FVU at L0 = | " + " | ".join(map(str, found.columns)) + " |"]
    lines.append("|---|" + "---|" * len(found.columns))
    best = found.min()
    for signature, row in found.iterrows():
        cells = []
        for l0, value in row.items():
            text = "" if math.isnan(value) else f"{value:.3f}"
            cells.append(f"**{text}**" if value == best[l0] else text)
        lines.append(f"| `{signature}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and what it says; with --docs write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--docs", action="store_true", help=f"write it into {DOCS.name}")
    arguments = parser.parse_args()
    run = ensemble_sae.load(arguments.run)
    found = table(run.members)
    text = markdown(found)
    print(text)
    plain = found.loc[PLAIN]
    for signature, row in found.drop(index=PLAIN).iterrows():
        both = row.notna() & plain.notna()
        better = int((row[both] < plain[both]).sum())
        mean = 100 * (1 - (row[both] / plain[both]).mean())
        print(
            f"{signature}: better than {PLAIN} at {better} of {int(both.sum())} L0, "
            f"FVU {mean:.0f}% lower on average"
        )
    if arguments.docs:
        page = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(replace(page, "matched", text + "\n"), encoding="utf-8")


if __name__ == "__main__":
    main()
