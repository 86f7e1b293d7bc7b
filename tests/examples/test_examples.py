"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_distill_digits_teaches_a_student_without_labels() -> None:
    assert runpy.run_path(str(EXAMPLES / "distill_digits.py"))["main"]() > 70


@pytest.mark.slow
# The other loops use what Python and torch have deprecated; an example for them cannot help it.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["timm_train", "lightning_module", "accelerate_loop", "hugging_face_trainer"])
def test_a_task_takes_part_in_a_loop_that_is_not_kdkits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "hugging_face_trainer":
        pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[loops]'")
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as when the script is run
    assert runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]() > 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages
def test_the_notebook_runs_in_a_jupyter_kernel_and_shows_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = (
        pytest.importorskip(name, reason="pip install '.[test]'") for name in ("nbclient", "nbformat")
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(EXAMPLES / "folder_to_report.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs differ from run to run: clear them"
    probe = "[[Path(str(row['run'])).name, float(str(row['best_top1']))] for row in table.rows]"
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps([str(report.output), {probe}]))"))
    nbclient.NotebookClient(notebook, timeout=300).execute()  # an error of a cell is raised
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    page, rows = json.loads(outputs[-1]["text"])
    best = dict(rows)
    assert best["student"] > best["baseline"] > 20, best
    assert "teacher.h5" in Path(page).read_text(encoding="utf-8")
    bars = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    shown = " ".join(str(bar["state"].get("outputs")) for bar in bars)
    assert "1200/1200" in shown, "the bar of the build, at its end"
    assert "training test_efficientnet in" in shown
