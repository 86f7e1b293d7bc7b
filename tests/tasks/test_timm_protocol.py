"""timm's own machinery takes a kdkit task as it takes timm's, side by side on the same models."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm.task
import torch
from support import tiny_model
from timm.models import load_checkpoint
from timm.optim import create_optimizer_v2
from timm.task._helpers import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

import kdkit

STUDENT, TEACHER = "test_efficientnet", "test_resnet"


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(8, 3, 32, 32, generator=generator), torch.randint(10, (8,), generator=generator))
        for _ in range(count)
    ]


def pair(temperature: float = 1.0) -> tuple[kdkit.TrainingTask, timm.task.TrainingTask]:
    """kdkit's task and timm's, on equal weights."""
    ours = kdkit.LogitDistillationTask(tiny_model(STUDENT), tiny_model(TEACHER, seed=1), temperature=temperature)
    theirs = timm.task.LogitDistillationTask(
        tiny_model(STUDENT),
        tiny_model(TEACHER, seed=1),
        nn.CrossEntropyLoss(),
        temperature=temperature,
        task_loss_weight=1.0,
        distill_loss_weight=1.0,
        verbose=False,
    )
    return ours, theirs


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_losses_equal_those_of_timms_task_step_by_step(temperature: float) -> None:
    tasks = [task.double() for task in pair(temperature)]  # in float32, rounding alone grows past 1e-5 in three steps
    optimizers = [create_optimizer_v2(task.trainable_module, "sgd", lr=0.05) for task in tasks]
    for images, target in batches(4):
        results = [task(images.double(), target) for task in tasks]
        for name in ("loss", "task_loss", "kd_loss"):
            torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-5)
        for result, optimizer in zip(results, optimizers, strict=True):
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()


def test_checkpoint_saver_resume_and_ema_loading_behave_as_with_timms_task(tmp_path: Path) -> None:
    for folder, task, fresh in zip(("ours", "theirs"), pair(), pair(), strict=True):
        (tmp_path / folder).mkdir()
        optimizer = create_optimizer_v2(task.trainable_module, "adamw", lr=1e-2, weight_decay=0.05)
        task.setup_ema(decay=0.9)
        for images, target in batches(2):
            optimizer.zero_grad()
            task(images, target)["loss"].backward()
            optimizer.step()
            task.update_ema()
        saver = CheckpointSaver(
            task.get_trainable_module(), optimizer, task=task, checkpoint_dir=str(tmp_path / folder), max_history=2
        )
        saver.save_checkpoint(3, metric=50.0)
        checkpoint = str(tmp_path / folder / "last.pth.tar")
        fresh.setup_ema(decay=0.9)
        fresh_optimizer = create_optimizer_v2(fresh.trainable_module, "adamw", lr=1e-2, weight_decay=0.05)
        assert resume_task_checkpoint(fresh, checkpoint, fresh_optimizer, log_info=False) == 4
        load_task_ema_checkpoint(fresh, checkpoint)
        for ema in (False, True):
            saved = task.get_checkpoint_state(ema=ema)
            loaded = fresh.get_checkpoint_state(ema=ema)
            assert list(saved) == list(loaded) == [f"state_dict{'_ema' if ema else ''}"]
            (saved,), (loaded,) = saved.values(), loaded.values()
            assert all(torch.equal(saved[name], loaded[name]) for name in saved)
        states = [opt.state_dict()["state"] for opt in (optimizer, fresh_optimizer)]
        assert all(torch.equal(states[0][i]["exp_avg"], states[1][i]["exp_avg"]) for i in states[0])


def test_both_checkpoints_hold_the_same_keys_and_load_into_a_plain_timm_model(tmp_path: Path) -> None:
    keys = []
    for folder, task in zip(("ours", "theirs"), pair(), strict=True):
        (tmp_path / folder).mkdir()
        saver = CheckpointSaver(
            task.get_trainable_module(),
            torch.optim.SGD(task.trainable_module.parameters(), lr=0.1),
            task=task,
            checkpoint_dir=str(tmp_path / folder),
        )
        saver.save_checkpoint(0, metric=1.0)
        checkpoint = tmp_path / folder / "last.pth.tar"
        content = torch.load(checkpoint, weights_only=True)
        keys.append({name: sorted(content[name]) if name == "state_dict" else None for name in content})
        plain = tiny_model(STUDENT, seed=9)
        load_checkpoint(plain, str(checkpoint), weights_only=True)
        images = batches(1)[0][0]
        task.eval()
        assert torch.equal(plain.eval()(images), task.get_eval_model()(images))
    assert keys[0] == keys[1]


def test_create_optimizer_v2_makes_the_same_groups_from_the_trainable_module() -> None:
    groups = []
    for task in pair():
        optimizer = create_optimizer_v2(
            task.get_trainable_module(), "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7
        )
        groups.append(
            [(group["weight_decay"], group["lr_scale"], len(group["params"])) for group in optimizer.param_groups]
        )
    assert groups[0] == groups[1]


def test_create_optimizer_v2_takes_the_task_itself_and_finds_no_teacher() -> None:
    task, _ = pair()
    optimizer = create_optimizer_v2(task, "adamw", lr=1e-3, weight_decay=0.05)
    found = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert found == {id(parameter) for parameter in task.trainable_module.parameters()}


def test_evaluators_count_alike() -> None:
    summaries = []
    for task in pair():
        task.eval()
        evaluator = task.create_evaluator()
        with torch.no_grad():
            for images, target in batches(3):
                evaluator.update(task.get_eval_model()(images), target)
        summaries.append(evaluator.compute())
    assert summaries[0] == summaries[1]


def test_every_method_of_timms_protocol_is_there_with_its_arguments() -> None:
    import inspect

    for name, method in inspect.getmembers(timm.task.TrainingTask, inspect.isfunction):
        if name.startswith("_") or name not in vars(timm.task.TrainingTask):
            continue
        theirs = inspect.signature(method).parameters
        ours = inspect.signature(getattr(kdkit.TrainingTask, name)).parameters
        assert list(theirs) == list(ours), name


def test_no_sync_does_nothing_without_ddp() -> None:
    task, _ = pair()
    images, target = batches(1)[0]
    reference = copy.deepcopy(task)
    with task.no_sync():
        task(images, target)["loss"].backward()
    reference(images, target)["loss"].backward()
    for mine, theirs in zip(task.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
