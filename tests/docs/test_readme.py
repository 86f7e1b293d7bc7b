"""The README's second section as a newcomer runs it: each command a process of its own, on a folder like ImageNet's."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from commands import blocks, run_script

from kdkit.config import StudentConfig
from kdkit.student import load_student


@pytest.mark.slow
def test_a_newcomer_gets_from_a_teacher_to_a_model_that_timm_loads(tmp_path: Path) -> None:
    (script,) = blocks("README.md", below="## From a teacher to a model that timm loads")
    out = run_script(script, tmp_path)
    for printed in (
        "published_top1",  # teachers show
        "images       2,000 (1,000 samples x 2 views)",  # cache estimate
        "holds        1,000 images x 2 views",  # cache build
        "lowrank, 96 bytes per row",  # cache info
        "weights: runs/small/model_best.pth.tar",  # distill
        "runs/small: top-1 ",  # evaluate
        "exported/model.safetensors",  # export
        "1000 classes",  # timm
    ):
        assert printed in out
    student, described = load_student(StudentConfig(student=str(tmp_path / "runs/small")))
    exported = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).eval()
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(student(pictures), exported(pictures))
    assert described.class_names is not None
    assert described.class_names[0] == "n01440764"
    assert described.recipe.size == 32
