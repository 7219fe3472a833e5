"""The table of `docs/signatures.md`: one member of every signature, trained in one pass.

    python -m ensemble_sae.big_sweep zoo
    python benchmarks/zoo.py runs/zoo [--docs]

Exits with 1 if a member is not at a sensible point: FVU below 1 (the mean row) and L0 between 1
and 100, but for signatures that have no zeros by design.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from readme import replace

import ensemble_sae
from ensemble_sae.signatures import BUILTIN

DENSE = ("rica",)  # no zeros by design
DOCS = Path(__file__).parent.parent / "docs" / "signatures.md"


def sensible(row: dict[str, Any]) -> bool:
    """Whether a member is where one would want to go on from."""
    return row["fvu"] < 1 and (1 <= row["l0"] <= 100 or row["signature"] in DENSE)


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line per member."""
    lines = ["| member | hook | L0 | FVU | dead |", "|---|---|--:|--:|--:|"]
    for row in rows:
        hook = row["hook"].replace("blocks.2.hook_", "")
        lines.append(
            f"| `{row['name']}` | {hook} | {row['l0']:.1f} | {row['fvu']:.3f} "
            f"| {100 * row['dead']:.1f}% |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table; with --docs write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--docs", action="store_true", help=f"write it into {DOCS.name}")
    arguments = parser.parse_args()
    rows = ensemble_sae.load(arguments.run).members.to_dict("records")
    print(markdown(rows))
    missing = sorted(set(BUILTIN) - {row["signature"] for row in rows})
    bad = [row["name"] for row in rows if not sensible(row)]
    print(f"{len(rows)} members, {len(BUILTIN) - len(missing)} of {len(BUILTIN)} signatures")
    if arguments.docs:
        page = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(replace(page, "zoo", markdown(rows) + "\n"), encoding="utf-8")
    if missing or bad:
        sys.exit(f"missing: {missing}; not at a sensible point: {bad}")


if __name__ == "__main__":
    main()
