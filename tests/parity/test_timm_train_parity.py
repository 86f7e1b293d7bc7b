"""A training in the idiom of timm's train.py gives the same losses with timm's task and with kdkit's, step by step.

Everything but the task is timm's: folder dataset, loader with augmentation and mixup, optimizer with layer decay,
schedule, clipping, moving average, evaluator, checkpoints and resuming. Both run in float64, because in float32 the
rounding of two ways to write one loss grows with every step. Not compared: several ranks, AMP and compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.task
import torch
from support import tiny_model, write_digits
from task_rows import distilled_student
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, dispatch_clip_grad, random_seed
from torch import nn

import kdkit

EPOCHS, UPDATES, BATCH = 2, 3, 16
MakeTask = Callable[[Any, nn.Module], Any]


def student(kind: str) -> nn.Module:
    return distilled_student() if kind == "token" else tiny_model("test_efficientnet")


def timms_task(kind: str, criterion: nn.Module) -> Any:
    options: dict[str, Any] = {"distill_loss_weight": 2.0, "task_loss_weight": 0.5, "verbose": False}
    teacher = tiny_model("test_resnet", seed=5)
    torch.manual_seed(11)  # of the projection
    if kind == "classification":
        return timm.task.ClassificationTask(student(kind), criterion, verbose=False)
    if kind == "feature":
        return timm.task.FeatureDistillationTask(student(kind), teacher, criterion, **options)
    if kind == "token":
        return timm.task.TokenDistillationTask(student(kind), teacher, criterion, distill_type="hard", **options)
    return timm.task.LogitDistillationTask(student(kind), teacher, criterion, temperature=3.0, **options)


def kdkits_task(kind: str, criterion: nn.Module) -> Any:
    """The imports swapped, and keywords renamed."""
    options: dict[str, Any] = {"distill_loss_weight": 2.0, "task_loss_weight": 0.5}
    teacher = tiny_model("test_resnet", seed=5)
    torch.manual_seed(11)
    if kind == "classification":
        return kdkit.ClassificationTask(student(kind), criterion)
    if kind == "feature":
        return kdkit.FeatureDistillationTask(student(kind), teacher, criterion, **options)
    if kind == "token":
        return kdkit.TokenDistillationTask(student(kind), teacher, criterion, distill_loss="hard", **options)
    return kdkit.LogitDistillationTask(student(kind), teacher, criterion, temperature=3.0, **options)


def run(make: MakeTask, kind: str, data: Path, output: Path, *, mixes: bool) -> list[tuple[float, ...]]:
    """Trains with one interruption; (loss) of every step, and (top-1, top-1 of the average) of every epoch."""
    random_seed(42, 0)
    criterion = SoftTargetCrossEntropy() if mixes else LabelSmoothingCrossEntropy(0.1)
    task = begin(make, kind, criterion)
    optimizer, scheduler = optimization(task)
    saver = CheckpointSaver(task.get_trainable_module(), optimizer, task=task, checkpoint_dir=str(output))
    records: list[tuple[float, ...]] = []
    for epoch in range(EPOCHS):
        if epoch == 1:  # a new process goes on from the checkpoint
            task = begin(make, kind, criterion)
            optimizer, scheduler = optimization(task)
            assert resume_task_checkpoint(task, str(output / "last.pth.tar"), optimizer, log_info=False) == 1
            load_task_ema_checkpoint(task, str(output / "last.pth.tar"))
        records += train_one_epoch(epoch, task, loader(data, training=True), optimizer, scheduler, mixes=mixes)
        records.append((validate(task, data), validate(task, data, ema=True)))
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=records[-1][0])
    return records


def begin(make: MakeTask, kind: str, criterion: nn.Module) -> Any:
    task = make(kind, criterion).double()
    task.setup_ema(decay=0.9)
    task.prepare_distributed() if torch.distributed.is_initialized() else None
    return task


def optimization(task: Any) -> tuple[Any, Any]:
    optimizer = create_optimizer_v2(task.get_trainable_module(), "adamw", lr=2e-3, weight_decay=0.05, layer_decay=0.8)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=EPOCHS, step_on_epochs=False, updates_per_epoch=UPDATES
    )
    return optimizer, scheduler


def loader(data: Path, *, training: bool) -> Any:
    dataset = create_dataset("", root=str(data), split="train", is_training=training)
    return create_loader(
        dataset, (3, 32, 32), BATCH, is_training=training, use_prefetcher=False, num_workers=0, persistent_workers=False
    )


def train_one_epoch(
    epoch: int, task: Any, batches: Any, optimizer: Any, scheduler: Any, *, mixes: bool
) -> list[tuple[float]]:
    task.train()
    random_seed(7, epoch)
    mixup = Mixup(mixup_alpha=0.4, num_classes=10, label_smoothing=0.1) if mixes else None
    updates, losses = epoch * len(batches), []
    for images, target in batches:
        if mixup is not None:
            images, target = mixup(images, target)
        result = task(images.double(), target)
        optimizer.zero_grad()
        result["loss"].backward()
        dispatch_clip_grad(task.get_clip_parameters(exclude_head=True), value=0.02, mode="agc")
        optimizer.step()
        updates += 1
        task.update_ema(step=updates)
        scheduler.step_update(updates)
        losses.append((result["loss"].item(),))
    return losses


@torch.no_grad()
def validate(task: Any, data: Path, *, ema: bool = False) -> float:
    model, evaluator = task.get_eval_model(ema=ema).eval(), task.create_evaluator()
    for images, target in loader(data, training=False):
        evaluator.update(model(images.double()), target)
    return float(evaluator.compute()["top1"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
@pytest.mark.parametrize(
    ("kind", "mixes"), [("classification", False), ("logit", True), ("feature", False), ("token", True)]
)
def test_timms_training_script_gives_the_same_losses_with_kdkits_task(kind: str, mixes: bool, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data" / "train", 50).parent
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    ours = run(kdkits_task, kind, data, tmp_path / "ours", mixes=mixes)
    theirs = run(timms_task, kind, data, tmp_path / "theirs", mixes=mixes)
    assert len(ours) == len(theirs) == EPOCHS * (UPDATES + 1)
    for step, (mine, timms) in enumerate(zip(ours, theirs, strict=True)):
        assert mine == pytest.approx(timms, rel=1e-6), f"step {step}"
    assert ours[0] != ours[1]
