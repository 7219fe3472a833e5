"""The example notebook: its cells run, and the committed one is made of them and shows no more."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
from small_lm_run import trained as trained

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import make_notebook

CHANGED = {  # little text; a member of one hook point, since others cannot be exported
    "effects=True)": "effects=True, count=40, width=32)",
    'frontier = run.members[run.members["pareto"]]': (
        'frontier = run.members.query("pareto and id < 4")'
    ),
}


def test_the_cells_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left_out = shutil.ignore_patterns("evaluation", "inspected")
    shutil.copytree(trained, tmp_path / "runs/default", ignore=left_out)
    monkeypatch.chdir(tmp_path)
    source = make_notebook.SOURCE.read_text(encoding="utf-8")
    for said, instead in CHANGED.items():
        assert source.count(said) == 1
        source = source.replace(said, instead)
    names: dict[str, object] = {}
    shown = []
    for number, cell in enumerate(make_notebook.cells(source)):
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
            shown.append(type(value).__name__)
            assert not hasattr(value, "_repr_html_") or value._repr_html_()
    assert shown == [
        *("Run", "DataFrame", "Figure", "Sae", "tuple", "Series", "Evaluation", "Figure"),
        *("Features", "Feature", "NoneType", "list", "float"),
    ]
    assert (tmp_path / "exported/saelens/cfg.json").is_file()


def test_the_committed_notebook_is_made_of_these_cells():
    text = make_notebook.OUT.read_text(encoding="utf-8")
    assert make_notebook.problems(text) == []
    book = json.loads(text)
    expected = make_notebook.cells(make_notebook.SOURCE.read_text(encoding="utf-8"))
    assert [(c["cell_type"], "".join(c["source"])) for c in book["cells"]] == [
        (c.cell_type, c.source) for c in expected
    ]
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert {cell["metadata"].get("execution") for cell in code} == {None}
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {
        *("execute_result", "display_data", "stream"),
    }
    plots = [o["data"] for o in outputs if make_notebook.PLOTLY in o.get("data", {})]
    assert len(plots) == 2
    assert all(make_notebook.PNG in data for data in plots)


@pytest.mark.parametrize("place", ["/home/someone/runs", "/tmp/x", "/Users/someone/runs"])
def test_places_of_a_machine_are_found(place: str):
    assert len(make_notebook.problems(f'"text": "in {place}"')) == 1
    assert make_notebook.problems('"text": "</home> runs/tmp/x a/usr/b"') == []


def test_what_is_too_long_is_refused():
    assert "500,000" in make_notebook.problems("x" * 500_001)[0]
