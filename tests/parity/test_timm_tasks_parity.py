"""The behaviours that timm 1.0.31 tests of its tasks, as those of kdkit's tasks, on tiny models from outside timm.

Both projects' classes go through the same checks side by side. Not compared, because they differ by design: the place
of the projection (kdkit keeps the parameters of all its losses on features, timm one `projection`), the wrapper of the
teacher, and `teacher_pretrained_path`, for which kdkit has create_teacher(checkpoint=...).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm.task
import torch
from timm.optim import create_optimizer_v2
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import Tensor, nn

import kdkit
from kdkit.types import Batch

BOTH = pytest.mark.parametrize("tasks", [kdkit, timm.task], ids=["kdkit", "timm"])


class Plain(nn.Module):
    """The least that a task needs of a model: classes, channels and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.num_features = 3, 3, 5
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        self.classifier = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.mean((2, 3)))


class WithFeatures(Plain):
    """A model with timm's two halves, and parameters without weight decay."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.body = nn.Linear(3, width)
        self.classifier = nn.Linear(width, 3)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body(images.mean((2, 3)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.classifier(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def no_weight_decay(self) -> set[str]:
        return {"body.weight"}

    def group_matcher(self, coarse: bool = False) -> Any:
        return lambda name: int(name.startswith("classifier"))


class Wrapper(nn.Module):
    """A stranger's wrapper, as accelerate or a framework puts around a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def classification(tasks: Any) -> Any:
    return tasks.ClassificationTask(Plain(), nn.CrossEntropyLoss(), verbose=False)


def features(tasks: Any, student: int = 4, teacher: int = 6) -> Any:
    return tasks.FeatureDistillationTask(
        WithFeatures(student), WithFeatures(teacher), criterion=nn.CrossEntropyLoss(), verbose=False
    )


def save(saved: Any, path: Path, *, epoch: int, **options: Any) -> dict[str, Any]:
    trainable = saved.get_trainable_module()
    optimizer = torch.optim.SGD(trainable.parameters(), lr=0.1)
    CheckpointSaver(trainable, optimizer, checkpoint_dir=path.parent, **options)._save(path, epoch=epoch)
    return dict(torch.load(path, weights_only=True))


def projection_of(task: Any) -> nn.Linear:
    """The one projection, where each project keeps it."""
    trainable = task.get_trainable_module()
    return (
        trainable.projection
        if hasattr(trainable, "projection")
        else trainable.comparisons.hint_mse.loss.projection.linear
    )


@BOTH
def test_an_empty_task_state_is_not_saved_and_savers_without_a_task_still_work(tasks: Any, tmp_path: Path) -> None:
    task = classification(tasks)
    task.setup_ema(decay=0.0)
    saved = save(task, tmp_path / "task.pth.tar", epoch=2, task=task)
    assert {"state_dict", "state_dict_ema"} <= set(saved)
    assert not {"task_state", "task_state_ema"} & set(saved)
    saved = save(task, tmp_path / "old.pth.tar", epoch=2, model_ema=task.get_trainable_module(ema=True))
    assert {"state_dict", "state_dict_ema"} <= set(saved)


@BOTH
def test_checkpoints_of_old_layouts_resume_with_the_next_epoch(tasks: Any, tmp_path: Path) -> None:
    path = tmp_path / "old.pth.tar"
    torch.save({"model": classification(tasks).get_eval_model().state_dict(), "epoch": 5, "version": 2}, path)
    assert resume_task_checkpoint(classification(tasks), path, log_info=False) == 6


@BOTH
def test_a_projection_is_task_state_and_the_checkpoints_model_is_the_plain_student(tasks: Any, tmp_path: Path) -> None:
    task, fresh = features(tasks), features(tasks)
    for each in (task, fresh):
        each.setup_ema(decay=0.0)
    saved = save(task, tmp_path / "features.pth.tar", epoch=1, task=task)
    for suffix in ("", "_ema"):
        assert list(saved[f"state_dict{suffix}"]) == list(WithFeatures(4).state_dict())
        (state,) = saved[f"task_state{suffix}"].values()
        assert [value.shape for value in state.values()] == [(6, 4), (6,)]
    assert resume_task_checkpoint(fresh, tmp_path / "features.pth.tar", log_info=False) == 2
    load_task_ema_checkpoint(fresh, tmp_path / "features.pth.tar")
    assert torch.equal(projection_of(fresh).weight, projection_of(task).weight)
    for ema in (False, True):
        assert fresh.get_eval_model(ema=ema)(torch.randn(2, 3, 8, 8)).shape == (2, 3)


@BOTH
def test_the_student_is_found_inside_a_strangers_wrapper(tasks: Any) -> None:
    task = features(tasks)
    wrapper = Wrapper(task.get_trainable_module())
    assert task.get_eval_model(module=wrapper) is wrapper.module.student
    plain = classification(tasks)
    plain.trainable_module = Wrapper(plain.get_trainable_module())
    assert plain.get_eval_model() is plain.trainable_module
    assert set(plain.get_clip_parameters()) == set(plain.trainable_module.parameters())


@BOTH
def test_optimizers_group_the_projection_with_the_last_layer(tasks: Any) -> None:
    task = features(tasks)
    trainable, projection = task.get_trainable_module(), projection_of(task)
    optimizer = create_optimizer_v2(trainable, opt="sgd", lr=0.1, weight_decay=0.2)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(projection.weight)] == 0.2
    assert decay[id(projection.bias)] == decay[id(trainable.student.body.weight)] == 0.0
    matcher = trainable.group_matcher()
    (name,) = [name for name, value in trainable.named_parameters() if value is projection.weight]
    assert matcher(name) == matcher("student.classifier.weight") > matcher("student.body.weight")


@BOTH
def test_a_compiled_average_follows_the_compiled_student(tasks: Any) -> None:
    images, task = torch.randn(2, 3, 8, 8), classification(tasks)
    task.setup_ema(decay=0.0)
    task.compile(backend="eager")
    task.compile_ema(backend="eager")
    assert all(hasattr(task.get_eval_model(ema=ema), "_orig_mod") for ema in (False, True))
    before = task.get_eval_model(ema=True)(images)
    with torch.no_grad():
        for parameter in task.get_trainable_module().parameters():
            parameter.add_(0.25)
    task.update_ema(step=2)
    assert not torch.allclose(before, task.get_eval_model(ema=True)(images))
    torch.testing.assert_close(task.get_eval_model(ema=True)(images), task.get_eval_model()(images))


@BOTH
def test_a_compiled_task_loads_the_checkpoint_of_one_that_is_not(tasks: Any) -> None:
    saved, task = classification(tasks).get_checkpoint_state()["state_dict"], classification(tasks)
    task.compile(backend="eager")
    task.load_checkpoint_state(saved)
    loaded = task.get_checkpoint_state()["state_dict"]
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_timms_feature_checkpoint_resumes_with_its_projection(tmp_path: Path) -> None:
    theirs, ours = features(timm.task), features(kdkit)
    for each in (theirs, ours):
        each.setup_ema(decay=0.0)
    save(theirs, tmp_path / "theirs.pth.tar", epoch=4, task=theirs)
    assert resume_task_checkpoint(ours, tmp_path / "theirs.pth.tar", log_info=False) == 5
    load_task_ema_checkpoint(ours, tmp_path / "theirs.pth.tar")
    assert torch.equal(projection_of(ours).weight, projection_of(theirs).weight)
    images, target = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    theirs.teacher.model.load_state_dict(ours.teacher.model.state_dict())
    torch.testing.assert_close(ours(images, target)["loss"], theirs(images, target)["loss"])


def test_timms_feature_checkpoint_is_refused_by_what_it_holds_where_it_has_no_place() -> None:
    state = features(timm.task).get_task_state()
    with pytest.raises(kdkit.errors.CheckpointError, match=r"holds projection, this task's losses learn nothing"):
        features(kdkit, 6, 6).load_task_state(state)
    several = kdkit.FeatureDistillationTask(
        WithFeatures(4), WithFeatures(6), distill_loss={"hint_mse": 1.0, "hint_cosine": 1.0}
    )
    with pytest.raises(kdkit.errors.CheckpointError, match=r"holds projection, this task's losses learn hint_cosine"):
        several.load_task_state(state)
    with pytest.raises(kdkit.errors.CheckpointError, match="does not fit"):
        features(kdkit, 5, 6).load_task_state(state)
    features(kdkit, 6, 6).load_task_state(state, strict=False)


@pytest.mark.parametrize(("mean", "dtype"), [(None, None), ((0.1, 0.2, 0.3), None), ((0.1, 0.2, 0.3), torch.float64)])
def test_timms_teacher_keeps_its_own_normalisation(mean: Any, dtype: Any) -> None:
    """Its model states one that is not ImageNet's, or its buffers were set to another."""
    wrapped = timm.task.DistillationTeacher(WithFeatures(6), dtype=dtype).to(dtype or torch.float32)
    if mean is not None:
        wrapped.mean_kd.copy_(torch.tensor(mean).view(1, 3, 1, 1))
    student = Plain()
    student.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    theirs = timm.task.LogitDistillationTask(
        student, wrapped, nn.CrossEntropyLoss(), distill_loss_weight=1.0, verbose=False
    ).to(dtype or torch.float32)
    ours = kdkit.LogitDistillationTask(student, wrapped)
    images, target = torch.randn(4, 3, 8, 8, dtype=dtype), torch.tensor([0, 2, 1, 1])
    for name in ("task_loss", "kd_loss"):
        torch.testing.assert_close(ours(images, target)[name], theirs(images, target)[name])
    expected = wrapped(wrapped.normalize_input(images, theirs.student_mean, theirs.student_std))
    assert ours.teacher.model is wrapped.model
    torch.testing.assert_close(ours.teacher(Batch(images, target)).logits, expected)
    if mean is None:
        assert ours.teacher.normalization.mean == (0.5, 0.5, 0.5)
