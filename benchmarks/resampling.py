"""The table of `docs/training.md`: dead features with and without what brings them back.

python -m ensemble_sae.big_sweep resampling
python benchmarks/resampling.py runs/resampling [--docs]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from readme import replace

import ensemble_sae

DOCS = Path(__file__).parent.parent / "docs" / "training.md"


def label(row: dict[str, Any]) -> str:
    """What a member does about its dead features."""
    if row["revive"] != "none":
        return f'`revive = "{row["revive"]}"`'
    if row["resample"] == "loss":
        return f'`resample = "loss"`, power {row["resample_power"]:g}'
    return f'`resample = "{row["resample"]}"`' if row["resample"] != "none" else "nothing"


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line per member: its dead share and FVU, and both against the one that does nothing."""
    plain = next(row for row in rows if label(row) == "nothing")
    lines = ["| | dead | FVU | dead, to nothing | FVU, to nothing |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        dead, fvu = row["dead"] / plain["dead"], row["fvu"] / plain["fvu"]
        lines.append(
            f"| {label(row)} | {100 * row['dead']:.1f}% | {row['fvu']:.4f} "
            f"| {dead:.2f}x | {fvu:.3f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table; with --docs write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--docs", action="store_true", help=f"write it into {DOCS.name}")
    arguments = parser.parse_args()
    text = markdown(ensemble_sae.load(arguments.run).members.to_dict("records"))
    print(text)
    if arguments.docs:
        page = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(replace(page, "resampling", text + "\n"), encoding="utf-8")


if __name__ == "__main__":
    main()
