"""The examples run as they stand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

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
def test_the_notebook_runs_from_the_first_cell_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notebook = json.loads((EXAMPLES / "folder_to_report.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "a notebook is stored without outputs, which differ from run to run"
            exec("".join(cell["source"]), names)
    best = {Path(str(row["run"])).name: float(str(row["best_top1"])) for row in names["table"].rows}
    assert best["student"] > best["baseline"] > 20, best
    page = Path(names["report"].output).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "teacher.h5" in page
    assert "MB" in capsys.readouterr().out
