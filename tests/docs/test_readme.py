"""The README's commands on a small folder, and the path of docs/quickstart.md on real digits, as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from commands import ROOT, blocks, lines, run_line
from safetensors.torch import save_file
from support import tiny_model, write_digits

from kdkit.config import StudentConfig
from kdkit.report import compare
from kdkit.student import load_student


@pytest.mark.slow
def test_a_newcomer_gets_from_a_teacher_to_a_model_that_timm_loads_and_that_beats_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script = (ROOT / "examples" / "digits.sh").read_text()
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


@pytest.mark.slow
def test_the_commands_of_the_readme_run_on_a_folder_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        write_digits(tmp_path / part, 30)
    save_file(tiny_model(seed=1).state_dict(), tmp_path / "pretrained.safetensors")
    small = {
        "resnet50.a1_in1k --pretrained": "test_resnet --student-checkpoint pretrained.safetensors --size 32 --views 2",
        "--epochs 20": "--epochs 2 --batch-size 10",
        "--views 10": "--views 2 --size 32",
        "--student resnet18 --pretrained": "--student test_resnet",
        "--epochs 100": "--epochs 2 --batch-size 10",
    }
    (script,) = blocks("README.md")
    for published, smaller in small.items():
        assert published in script
        script = script.replace(published, smaller)
    out = [run_line(line, capsys) for line in lines(script)]
    assert "weights: runs/teacher/model_best.pth.tar" in out[0]
    assert "holds        30 images x 2 views" in out[1]
    assert "weights: runs/r18/model_best.pth.tar" in out[2]
