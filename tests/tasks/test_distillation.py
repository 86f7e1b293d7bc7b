"""LogitDistillationTask: the sum it computes, and the teacher it keeps frozen."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from support import tiny_model
from torch import Tensor

from kdkit import LogitDistillationTask, Teacher, TeacherOutput, create_teacher
from kdkit.errors import ClassMismatchError, ConfigError, KdkitError, MissingTeacherError
from kdkit.tasks import LabelledCrossEntropy


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)


def plain_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum over classes of p log(p / q), written out."""
    p, q = (logits.double().div(temperature).softmax(1) for logits in (teacher, student))
    return (p * (p / q).log()).sum(1).mean() * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_weighted_sum_of_its_terms(temperature: float) -> None:
    student, teacher = tiny_model("test_efficientnet").eval(), tiny_model(seed=1)
    task = LogitDistillationTask(
        student, teacher, temperature=temperature, task_loss_weight=0.3, distill_loss_weight=2.0
    )
    task.trainable_module.eval()
    images, target = batch()
    result = task(images, target)
    # test_efficientnet expects ImageNet's normalisation, test_resnet 0.5: pixels between the two, the long way round.
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    teacher_logits = teacher((images * std + mean - 0.5) / 0.5)
    kd_loss = plain_kl(student(images), teacher_logits, temperature)
    task_loss = F.cross_entropy(student(images), target)
    torch.testing.assert_close(result["task_loss"], task_loss)
    torch.testing.assert_close(result["kd_loss"].double(), kd_loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result["loss"], 0.3 * result["task_loss"] + 2.0 * result["kd_loss"])
    torch.testing.assert_close(result["output"], student(images))


def test_loss_aliases_no_component() -> None:
    result = LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model())(*batch())
    before = {name: value.clone() for name, value in result.items()}
    with torch.no_grad():
        result["loss"].zero_()
    assert torch.equal(result["kd_loss"], before["kd_loss"])
    assert torch.equal(result["task_loss"], before["task_loss"])


def test_a_given_output_stands_in_for_the_teacher() -> None:
    student, images, target = tiny_model("test_efficientnet").eval(), *batch()
    logits = torch.randn(6, 10)
    task = LogitDistillationTask(student)
    task.trainable_module.eval()
    result = task(images, target, TeacherOutput(logits))
    torch.testing.assert_close(result["kd_loss"].double(), plain_kl(student(images), logits, 1.0), rtol=1e-4, atol=1e-6)


def test_without_teacher_and_output_the_error_names_what_to_pass() -> None:
    with pytest.raises(MissingTeacherError, match="teacher_output=cache"):
        LogitDistillationTask(tiny_model())(*batch())


def test_an_output_without_logits_is_refused() -> None:
    with pytest.raises(MissingTeacherError, match="pooled"):
        LogitDistillationTask(tiny_model())(*batch(), TeacherOutput(None, {"pooled": torch.zeros(6, 8)}))


def test_training_without_labels_needs_none() -> None:
    task = LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model(), task_loss_weight=0.0)
    result = task(batch()[0], None)
    assert float(result["task_loss"].detach()) == 0.0
    torch.testing.assert_close(result["loss"], result["kd_loss"])
    with pytest.raises(ConfigError, match="task_loss_weight=0"):
        LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model())(batch()[0], None)


def test_soft_labels_work_as_index_labels_do() -> None:
    task = LogitDistillationTask(tiny_model("test_efficientnet").eval(), tiny_model())
    task.trainable_module.eval()
    images, target = batch()
    hard, soft = task(images, target), task(images, F.one_hot(target, 10).float())
    torch.testing.assert_close(hard["task_loss"], soft["task_loss"])


def test_another_class_count_is_refused_with_both_numbers() -> None:
    with pytest.raises(ClassMismatchError, match=r"12 classes, the student 10") as caught:
        LogitDistillationTask(tiny_model(), tiny_model(num_classes=12))
    assert isinstance(caught.value, KdkitError)
    assert isinstance(caught.value, ValueError)


def test_a_callable_loss_gets_the_target_if_it_takes_one() -> None:
    seen = []

    def loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return (student - teacher).square().mean()

    images, target = batch()
    LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model(), distill_loss=loss)(images, target)
    assert torch.equal(seen[0], target)


def test_the_teacher_is_frozen_on_construction_and_stays_so() -> None:
    model = tiny_model().train()
    task = LogitDistillationTask(tiny_model("test_efficientnet"), model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(task.parameters(), lr=1.0)
    task.train()
    task.requires_grad_(True)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for _ in range(2):
        result = task(*batch())
        result["loss"].backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ours = {id(parameter) for parameter in task.parameters()}
    assert ours == {id(parameter) for parameter in task.trainable_module.parameters()}
    assert set(task.state_dict()) == {f"trainable_module.{name}" for name in task.trainable_module.state_dict()}


def test_gradients_reach_every_parameter_of_the_student() -> None:
    task = LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model(), task_loss_weight=0.0)
    task(batch()[0], None)["loss"].backward()
    assert all(parameter.grad is not None for parameter in task.trainable_module.parameters())


def test_losses_are_float32_under_autocast_and_the_teacher_is_not_touched_by_it() -> None:
    model = tiny_model(seed=1)
    task = LogitDistillationTask(tiny_model("test_efficientnet"), model)
    images, target = batch()
    expected = task.teacher(_batch_of(images)).logits
    with torch.autocast("cpu", torch.bfloat16):
        result = task(images, target)
        outputs = task.teacher(_batch_of(images)).logits
    assert result["kd_loss"].dtype == result["task_loss"].dtype == result["loss"].dtype == torch.float32
    assert result["output"].dtype == torch.bfloat16
    assert torch.equal(outputs, expected)


def test_one_teacher_serves_students_of_different_normalisation() -> None:
    teacher = create_teacher(tiny_model(seed=1))
    first = LogitDistillationTask(tiny_model("test_efficientnet"), teacher)
    second = LogitDistillationTask(tiny_model("test_resnet"), teacher)
    assert isinstance(first.teacher, Teacher)
    assert first.teacher.model is second.teacher.model
    assert first.teacher.input_normalization != second.teacher.input_normalization


def test_a_teacher_output_is_a_value_that_can_be_copied_and_pickled() -> None:
    outputs = TeacherOutput(torch.randn(2, 3), {"pooled": torch.randn(2, 4)})
    for twin in (pickle.loads(pickle.dumps(outputs)), copy.deepcopy(outputs)):
        assert torch.equal(twin.logits, outputs.logits)
        assert torch.equal(twin.features["pooled"], outputs.features["pooled"])
    assert outputs == outputs
    assert len({outputs, outputs}) == 1


def test_a_student_that_is_its_own_frozen_teacher_is_refused_before_it_is_frozen() -> None:
    student = tiny_model()
    for teacher in (student, torch.nn.Sequential(student)):
        with pytest.raises(ConfigError, match=r"share weights.*'ema'"):
            LogitDistillationTask(student, teacher)
    assert all(parameter.requires_grad for parameter in student.parameters())
    LogitDistillationTask(student, copy.deepcopy(student))
    with pytest.raises(ConfigError, match="share weights"):
        LogitDistillationTask(student, create_teacher(student))


def test_what_is_no_student_no_teacher_output_and_no_weight_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nn\.Module, got 'test_resnet'"):
        LogitDistillationTask("test_resnet")  # type: ignore[arg-type]
    task = LogitDistillationTask(tiny_model())
    with pytest.raises(ConfigError, match="a TeacherOutput, got Tensor"):
        task(*batch(), torch.zeros(6, 10))
    with pytest.raises(ConfigError, match="'kl' must be a finite number, got nan"):
        LogitDistillationTask(tiny_model(), distill_loss={"kl": float("nan")})


def test_labelled_cross_entropy_averages_over_the_labelled_alone() -> None:
    criterion, logits = LabelledCrossEntropy(), torch.randn(5, 10)
    target = torch.tensor([3, -1, 2, -1, -1])
    torch.testing.assert_close(criterion(logits, target), F.cross_entropy(logits[[0, 2]], target[[0, 2]]))
    assert float(criterion(logits, torch.full((5,), -1))) == 0.0


def test_labelled_cross_entropy_is_torchs_where_all_have_labels_hard_or_soft() -> None:
    criterion, logits, target = LabelledCrossEntropy(label_smoothing=0.1), torch.randn(5, 10), torch.arange(5)
    torch.testing.assert_close(criterion(logits, target), F.cross_entropy(logits, target, label_smoothing=0.1))
    soft = torch.rand(5, 10).softmax(1)
    assert torch.equal(criterion(logits, soft), F.cross_entropy(logits, soft, label_smoothing=0.1))


def _batch_of(images: Tensor):  # type: ignore[no-untyped-def]
    from kdkit.types import Batch

    return Batch(images, torch.zeros(len(images), dtype=torch.int64))
