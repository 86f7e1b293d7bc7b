"""Samples without a label (target -1): no part in the loss on labels, compared with a plain loop over the rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import tiny_model
from task_rows import distilled_student
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from kdkit import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TeacherOutput,
    TokenDistillationTask,
)
from kdkit.errors import LabelError
from kdkit.tasks import LabelledCrossEntropy, MultiLabelClassificationTask
from kdkit.tasks.observation import observe

CLASSES = 10


def some_logits(count: int = 6, seed: int = 0) -> Tensor:
    return 3 * torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(seed))


def plain(logits: Tensor, labels: list[dict[int, float]], smoothing: float) -> float:
    """The loss by hand: of each sample {class: share}; the shares sum to less than 1 where a part is missing."""
    total = known = 0.0
    for row, label in zip(logits.double(), labels, strict=True):
        log_p = [float(value - row.logsumexp(0)) for value in row]
        share = sum(label.values())
        total -= (1 - smoothing) * sum(part * log_p[at] for at, part in label.items())
        total -= smoothing * share * sum(log_p) / len(log_p)
        known += share
    return total / known if known else 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_indices_count_where_there_are_any(smoothing: float) -> None:
    logits, target = some_logits(), torch.tensor([3, -1, 0, -1, 9, -1])
    found = LabelledCrossEntropy(label_smoothing=smoothing)(logits, target)
    labels = [{int(label): 1.0} if label >= 0 else {} for label in target]
    assert float(found) == pytest.approx(plain(logits, labels, smoothing), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_missing_part_of_a_mixed_label_does_not_count(smoothing: float) -> None:
    labels = [{3: 0.75, 5: 0.25}, {1: 0.4}, {}, {2: 1.0}]
    target = torch.zeros(4, CLASSES)
    for row, label in enumerate(labels):
        for at, share in label.items():
            target[row, at] = share
    logits = some_logits(4)
    found = LabelledCrossEntropy(label_smoothing=smoothing)(logits, target)
    assert float(found) == pytest.approx(plain(logits, labels, smoothing), rel=1e-6)


@pytest.mark.parametrize("target", [torch.full((6,), -1), torch.zeros(6, CLASSES)])
def test_without_any_label_loss_and_gradient_are_exactly_zero(target: Tensor) -> None:
    logits = some_logits().requires_grad_()
    loss = LabelledCrossEntropy(label_smoothing=0.1)(logits, target)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(logits.grad, torch.zeros(6, CLASSES))  # type: ignore[arg-type]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_all_labels_it_is_torchs_cross_entropy(smoothing: float) -> None:
    logits, index = some_logits(), torch.tensor([3, 1, 0, 2, 9, 9])
    criterion = LabelledCrossEntropy(label_smoothing=smoothing)
    assert torch.equal(criterion(logits, index), F.cross_entropy(logits, index, label_smoothing=smoothing))
    soft = 0.7 * F.one_hot(index, CLASSES) + 0.3 * F.one_hot(index.flip(0), CLASSES)
    torch.testing.assert_close(criterion(logits, soft), F.cross_entropy(logits, soft, label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_torchs_over_the_labelled_samples_and_never_make_a_nan(smoothing: float) -> None:
    weight = torch.tensor([0.0, *[1.0 + number for number in range(CLASSES - 1)]])
    criterion = LabelledCrossEntropy(weight, label_smoothing=smoothing)
    logits, target = some_logits(), torch.tensor([3, -1, 0, -1, 9, -1])
    labelled = target >= 0
    expected = F.cross_entropy(logits[labelled], target[labelled], weight, label_smoothing=smoothing)
    torch.testing.assert_close(criterion(logits, target), expected)
    for empty in (torch.full((6,), -1), torch.zeros(6, CLASSES)):
        leaf = some_logits().requires_grad_()
        criterion(leaf, empty).backward()
        assert float(criterion(leaf, empty).detach()) == 0.0
        assert torch.equal(leaf.grad, torch.zeros(6, CLASSES))  # type: ignore[arg-type]
    assert torch.isfinite(criterion(logits, torch.zeros(6, dtype=torch.int64)))  # all of the class of weight 0


TASKS = ("labels", "live", "cached", "feature", "token")


def of_labels(task: str, criterion: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of (images, target) -> the loss on labels of a task, its teacher live or cached."""
    student = tiny_model().eval()
    if task == "labels":
        supervised = ClassificationTask(student, criterion)
        return lambda images, target: supervised(images, target)["loss"]
    if task == "live":
        live = LogitDistillationTask(student, tiny_model(seed=1), criterion)
        return lambda images, target: live(images, target)["task_loss"]
    if task == "feature":
        feature = FeatureDistillationTask(student, tiny_model(seed=1), criterion, distill_loss="hint_cosine")
        return lambda images, target: feature(images, target)["task_loss"]
    if task == "token":
        token = TokenDistillationTask(distilled_student().eval(), tiny_model(seed=1), criterion)
        return lambda images, target: token(images, target)["task_loss"]
    cached = LogitDistillationTask(student, None, criterion)
    return lambda images, target: cached(images, target, TeacherOutput(some_logits(len(images))))["task_loss"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("criterion", [None, nn.CrossEntropyLoss(label_smoothing=0.1), lambda z, y: F.nll_loss(z, y)])
def test_every_task_and_criterion_is_given_the_labelled_samples_alone(
    task: str, criterion: Callable[[Tensor, Tensor], Tensor] | None
) -> None:
    loss = of_labels(task, criterion)
    images, target = torch.randn(5, 3, 32, 32), torch.tensor([4, -1, -1, 0, -1])
    labelled = target >= 0
    torch.testing.assert_close(loss(images, target), loss(images[labelled], target[labelled]))
    nothing = loss(images, torch.full((5,), -1))
    assert float(nothing.detach()) == 0.0
    assert nothing.requires_grad


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("criterion", [SoftTargetCrossEntropy(), BinaryCrossEntropy(), nn.CrossEntropyLoss()])
def test_a_custom_criterion_is_not_given_the_rows_of_zeros_of_soft_labels(
    task: str, criterion: Callable[[Tensor, Tensor], Tensor]
) -> None:
    loss = of_labels(task, criterion)
    images, target = torch.randn(5, 3, 32, 32), torch.zeros(5, CLASSES)
    target[1, 3], target[1, 4], target[4, 0] = 0.6, 0.4, 1.0
    labelled = target.sum(dim=1) > 0
    torch.testing.assert_close(loss(images, target), loss(images[labelled], target[labelled]))
    assert float(loss(images, torch.zeros(5, CLASSES)).detach()) == 0.0


def test_an_image_in_which_no_class_is_present_has_labels_too() -> None:
    task = MultiLabelClassificationTask(tiny_model().eval())
    images, target = torch.randn(3, 3, 32, 32), torch.zeros(3, CLASSES)
    target[0, 2], target[2, 5:] = 1, -1  # the second image shows nothing, half of the third is not known
    result, known = task(images, target), target >= 0
    each = F.binary_cross_entropy_with_logits(result["output"], target.clamp_min(0), reduction="none")
    torch.testing.assert_close(result["loss"], each[known].mean())


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
@pytest.mark.parametrize("way", ["live", "cached"])
def test_a_term_that_needs_labels_takes_the_labelled_samples_alone(name: str, way: str) -> None:
    task = LogitDistillationTask(tiny_model().eval(), tiny_model(seed=1) if way == "live" else None, distill_loss=name)
    images, target = torch.randn(5, 3, 32, 32), torch.tensor([4, -1, -1, 0, -1])

    def kd_loss(rows: Tensor, labels: Tensor) -> Tensor:
        output = () if way == "live" else (TeacherOutput(some_logits(5)[rows]),)
        return task(images[rows], labels, *output)["kd_loss"]

    everything, some = torch.arange(5), torch.tensor([0, 3])
    torch.testing.assert_close(kd_loss(everything, target), kd_loss(some, target[some]))
    assert float(kd_loss(everything, torch.full((5,), -1)).detach()) == 0.0


def test_the_teachers_top1_is_over_labelled_samples_and_nan_without_any() -> None:
    teacher = some_logits(4)
    choice = teacher.argmax(dim=1)
    target = torch.stack([choice[0], (choice[1] + 1) % CLASSES, torch.tensor(-1), torch.tensor(-1)])
    assert float(observe(some_logits(4, 1), teacher, target)["teacher_top1"]) == 50.0
    assert math.isnan(observe(some_logits(4, 1), teacher, torch.full((4,), -1))["teacher_top1"])
    soft = torch.zeros(4, CLASSES)
    soft[0, choice[0]], soft[1, choice[1]], soft[1, (choice[1] + 1) % CLASSES] = 0.5, 0.25, 0.75
    seen = observe(some_logits(4, 1), teacher, soft)
    assert float(seen["teacher_top1"]) == pytest.approx(100 * (0.5 + 0.25) / 1.5)
    assert math.isnan(observe(some_logits(4, 1), teacher, torch.zeros(4, CLASSES))["teacher_top1"])


@pytest.mark.parametrize("odd", [10, 2**40, -2])
def test_a_label_that_is_no_class_of_the_student_is_one_line(odd: int) -> None:
    target = torch.tensor([3, odd, -1])
    with pytest.raises(LabelError, match=f"the label {odd} is none of the student's 10 classes: expected 0 to 9"):
        ClassificationTask(tiny_model())(torch.zeros(3, 3, 32, 32), target)
