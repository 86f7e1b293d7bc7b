"""A student before its teacher's classifier, against the same from its parts."""

from __future__ import annotations

import pytest
import torch
from support import tiny_model
from torch import nn

from kdkit import FeatureDistillationTask, create_teacher
from kdkit.errors import ConfigError
from kdkit.teachers.reused_head import ReusedHead, create


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_its_logits_are_those_of_the_teachers_classifier_for_its_projected_features(name: str) -> None:
    options = {"img_size": 32} if name == "test_vit" else {}
    student = create(name, 96, 3, **options).eval()
    teacher = create_teacher(tiny_model("test_resnet", seed=1), class_map=[7, 0, 2])
    student.take_head_of(teacher)
    images = torch.randn(2, 3, 32, 32)
    found: list[torch.Tensor] = []
    student.projector.register_forward_hook(lambda module, given, output: found.append(output))
    logits = student(images)
    classifier = teacher.model.get_classifier()
    torch.testing.assert_close(logits, classifier(found[0].mean((2, 3)))[:, [7, 0, 2]])
    learning = {parameter for parameter in student.parameters() if parameter.requires_grad}
    assert not learning & {student.head_weight, student.head_bias}


@pytest.mark.parametrize(("own", "of_teacher"), [("projector", "stages.4"), ("pooled", "pooled")])
def test_it_learns_the_teachers_features_without_labels_and_logits(own: str, of_teacher: str) -> None:
    teacher = create_teacher(tiny_model("test_resnet", seed=1))
    student = ReusedHead(tiny_model("test_efficientnet"), 96, 10, relu=False)
    student.take_head_of(teacher)
    task = FeatureDistillationTask(student, teacher, student_taps=own, teacher_taps=of_teacher, task_loss_weight=0.0)
    task(torch.randn(4, 3, 32, 32), None)["loss"].backward()
    assert task.get_task_state() == {}
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []


def test_teachers_without_such_a_classifier_are_refused() -> None:
    student = ReusedHead(tiny_model(), 96, 10)
    with pytest.raises(
        ConfigError, match="needs a teacher with weights of its own: give --teacher NAME, beside a cache with"
    ):
        student.take_head_of(None)
    with pytest.raises(
        ConfigError, match="reused head needs the classifier of its teacher, and the teacher 'test_resnet' has no head"
    ):
        student.take_head_of(create_teacher(tiny_model(num_classes=0)))
    with pytest.raises(ConfigError, match=r"is \[10, 256\], the student is made for \[10, 96\]: .* the width 256"):
        student.take_head_of(create_teacher(tiny_model("test_efficientnet")))
    with pytest.raises(
        ConfigError, match=r"is \[7, 96\], .* learns the teacher's classes, so both need those of the data"
    ):
        student.take_head_of(create_teacher(tiny_model(num_classes=7)))
    with pytest.raises(ConfigError, match="factor must be a whole number from 1, got 0"):
        ReusedHead(tiny_model(), 96, 10, factor=0)
    with pytest.raises(ConfigError, match="the backbone is a timm model, got Sequential"):
        ReusedHead(nn.Sequential(), 96, 10)
