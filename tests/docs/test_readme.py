"""The README's second section as a newcomer runs it, on real digits: every command as it stands, and what it claims."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from commands import blocks, lines, run_line

from kdkit.config import StudentConfig
from kdkit.report import compare
from kdkit.student import load_student


@pytest.mark.slow
def test_a_newcomer_gets_from_a_teacher_to_a_model_that_timm_loads_and_that_beats_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = blocks("README.md", below="## From a teacher to a model that timm loads")
    out = "".join(run_line(line, capsys) for line in lines(script))
    for printed in (
        "1,347 in train, 100 labelled, 1,247 unlabelled, 450 in val",
        "holds        1,347 images x 4 views",  # cache build
        "weights: runs/student/model_best.pth.tar",  # distill
        "runs/student: top-1 ",  # evaluate
        "exported/model.safetensors",  # export
        "10 classes",  # timm
    ):
        assert printed in out
    best = {Path(str(row["run"])).name: float(str(row["best_top1"])) for row in compare(["runs"]).rows}
    assert best["teacher"] > best["student"] > best["baseline"] + 2, best
    student, described = load_student(StudentConfig(student="runs/student"))
    exported = timm.create_model("local-dir:exported", pretrained=True).eval()
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(student(pictures), exported(pictures))
    assert described.class_names == tuple(map(str, range(10)))
