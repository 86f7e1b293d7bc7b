"""The loss on labels: its precision under autocast, and classes beyond those of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny_model, write_digits
from torch import Tensor, nn

from kdkit import ClassificationTask, LogitDistillationTask, create_loader, open_dataset
from kdkit.recipe import ViewRecipe
from kdkit.types import TeacherOutput


class Projected(nn.Module):
    """A criterion with a matrix product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        product = logits @ logits.T
        self.dtypes.append(product.dtype)
        return product.mean() + nn.functional.cross_entropy(logits, target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [ClassificationTask, LogitDistillationTask])
def test_a_criterion_is_computed_in_float32_whatever_the_autocast(kind: type, dtype: torch.dtype) -> None:
    criterion = Projected()
    task = kind(tiny_model(), criterion=criterion)
    options = {} if kind is ClassificationTask else {"teacher_output": TeacherOutput(torch.randn(4, 10))}
    with torch.autocast("cpu", dtype):
        loss = task(torch.randn(4, 3, 32, 32), torch.arange(4), **options)["loss"]
    assert criterion.dtypes == [torch.float32]
    assert loss.dtype == torch.float32
    loss.backward()


@pytest.mark.parametrize("mixes", [False, True])
def test_a_loader_makes_soft_labels_of_as_many_classes_as_the_student_has(tmp_path: Path, mixes: bool) -> None:
    recipe = ViewRecipe(size=32, mixup_alpha=1.0 if mixes else 0.0)
    dataset = open_dataset(write_digits(tmp_path, 20), recipe=recipe)
    student = tiny_model(num_classes=20)
    batch = next(iter(create_loader(dataset, student, batch_size=8, num_workers=0)))
    assert batch.target.shape == ((8, 20) if mixes else (8,))
    ClassificationTask(student)(batch.input, batch.target)["loss"].backward()
    assert dataset.num_classes == 10
