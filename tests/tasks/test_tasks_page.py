"""The Python code of docs/tasks.md runs unchanged, given a student, a teacher and a batch."""

from __future__ import annotations

import torch
from commands import blocks
from support import tiny_model
from task_rows import batch

from kdkit import create_teacher
from kdkit.types import Batch


def test_the_python_of_the_page_runs_in_its_order() -> None:
    images, target = batch()
    images = images.float()
    teacher = tiny_model("test_resnet", seed=1)
    teacher_output = create_teacher(teacher)(Batch(images, torch.zeros(0)))
    names = {
        "student": tiny_model("test_efficientnet"),
        "teacher": teacher,
        "other": tiny_model("test_vit", seed=2),
        "images": images,
        "target": target,
        "teacher_output": teacher_output,
    }
    code = blocks("docs/tasks.md", language="python")
    assert len(code) == 5
    for block in code:
        exec(block, names)
    assert names["result"]["loss"].isfinite()
    assert names["norms"]["gradient_ratio"] > 0
    assert names["ensemble"](Batch(images, torch.zeros(0))).logits.shape == (6, 10)
