"""docs/notebook.ipynb: the text and code of benchmarks/notebook.md, executed on a run.

    python benchmarks/make_notebook.py --run runs/default

The code finds the run as runs/default, from a folder of its own, and leaves evaluation and features
in it. Interactive figures get a still picture beside them, which pages that run nothing show.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import frontier
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import ensemble_sae
from ensemble_sae.files import write_atomically
from ensemble_sae.pages.pareto import TITLES
from ensemble_sae.run import Run
from ensemble_sae.run.cards import measured

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(__file__).with_name("notebook.md")
OUT = ROOT / "docs" / "notebook.ipynb"
PLOTLY, PNG = "application/vnd.plotly.v1+json", "image/png"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACES = re.compile(r"(?<![\w.`~-])/(?:home|root|tmp|work|mnt|usr|opt|Users)/\S*")
ENVIRONMENT = {
    "PLOTLY_RENDERER": "plotly_mimetype",  # data alone, without a library beside it
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}
STILL_DPI = 110
MOST_BYTES = 500_000


def cells(source: str) -> list[NotebookNode]:
    """Python blocks as code, what is between them as text."""
    found: list[NotebookNode] = []
    for number, part in enumerate(FENCE.split(source)):
        make = new_code_cell if number % 2 else new_markdown_cell
        if part.strip():
            found.append(make(part.strip(), id=f"cell-{len(found)}"))
    return found


def executed(run: Path) -> NotebookNode:
    """The notebook with its outputs."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = new_notebook(cells=cells(SOURCE.read_text(encoding="utf-8")))
    book.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        (Path(folder) / "runs" / "default").symlink_to(run.resolve(), target_is_directory=True)
        client = NotebookClient(
            book,
            timeout=1800,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        client.execute(env={**os.environ, **ENVIRONMENT})
    book.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return book


def finished(book: NotebookNode, run: Run) -> NotebookNode:
    """Without bars of progress and what libraries say; with still pictures."""
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata = {}
        cell.outputs = [output for output in cell.outputs if not _is_passing(output)]
        for output in cell.outputs:
            if PLOTLY in (data := output.get("data", {})):
                data[PNG] = still(data[PLOTLY], run)
    return book


def _is_passing(output: Any) -> bool:
    html = output.get("data", {}).get("text/html", "")
    return output.get("name") == "stderr" or "<progress" in html


def still(figure: Any, run: Run) -> str:
    """A picture of what `plot_pareto` shows, as base64."""
    title = figure["layout"]["yaxis"]["title"]["text"]
    y = next(name for name, text in TITLES.items() if text == title)
    room = io.BytesIO()
    drawn = frontier.picture(measured(run, y), y)
    drawn.savefig(room, format="png", dpi=STILL_DPI, metadata={"Software": None})
    return base64.b64encode(room.getvalue()).decode()


def problems(text: str) -> list[str]:
    """What must not be in a notebook that others read: this machine's folders, much data."""
    said = [f"a path of this machine: {place}" for place in PLACES.findall(text)]
    if len(text.encode()) > MOST_BYTES:
        said.append(f"{len(text.encode()):,} bytes are more than {MOST_BYTES:,}")
    return said


def main() -> None:
    """Execute and write, unless there is something in it that should not be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished run of the default")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    book = finished(executed(options.run), ensemble_sae.load(options.run))
    nbformat.validate(book)
    text = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if found := problems(text):
        raise SystemExit("\n".join(found))
    write_atomically(options.out, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{options.out}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
