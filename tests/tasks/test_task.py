"""TrainingTask: the contract that every task keeps."""

from __future__ import annotations

import pytest
import torch
from support import tiny_model
from torch import nn

from kdkit import ClassificationTask, LogitDistillationTask, TrainingTask
from kdkit.errors import CheckpointError


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make(kind: type[TrainingTask]) -> TrainingTask:
    if kind is LogitDistillationTask:
        return LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model(seed=1))
    return ClassificationTask(tiny_model("test_efficientnet"))


def test_the_base_has_no_forward() -> None:
    with pytest.raises(NotImplementedError):
        TrainingTask()(images(), torch.zeros(4, dtype=torch.int64))


def test_device_and_dtype_have_the_documented_defaults() -> None:
    task = TrainingTask()
    assert task.device == torch.device("cpu")
    assert task.dtype == torch.get_default_dtype()
    assert TrainingTask(dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [ClassificationTask, LogitDistillationTask])
@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda module: module.to(torch.float64), torch.float64),
        (lambda module: module.half(), torch.float16),
        (lambda module: module.bfloat16(), torch.bfloat16),
        (lambda module: module.double().float(), torch.float32),
        (lambda module: module.to("meta"), torch.float32),
    ],
)
@pytest.mark.parametrize("through_parent", [False, True])
def test_any_conversion_keeps_device_and_dtype_true(kind, convert, dtype, through_parent) -> None:  # type: ignore[no-untyped-def]
    task = make(kind)
    convert(nn.Sequential(nn.ModuleDict({"task": task})) if through_parent else task)
    parameter = next(task.trainable_module.parameters())
    assert task.dtype == parameter.dtype == dtype
    assert task.device == parameter.device
    if isinstance(task, LogitDistillationTask):
        assert next(task.teacher.model.parameters()).dtype == dtype


def test_a_converted_task_still_takes_a_step() -> None:
    task = make(LogitDistillationTask).to(torch.float64)
    result = task(images().double(), torch.arange(4))
    assert result["loss"].dtype == torch.float64
    assert result["loss"].isfinite()


@pytest.mark.parametrize("kind", [ClassificationTask, LogitDistillationTask])
def test_checkpoint_state_round_trips_with_the_ema(kind) -> None:  # type: ignore[no-untyped-def]
    task, other = make(kind), make(kind)
    for each in (task, other):
        each.setup_ema(decay=0.5)
    with torch.no_grad():
        for parameter in task.trainable_module.parameters():
            parameter.add_(0.1)
    task.update_ema()
    other.load_checkpoint_state(task.get_checkpoint_state()["state_dict"])
    other.load_checkpoint_state(task.get_checkpoint_state(ema=True)["state_dict_ema"], ema=True)
    for ema in (False, True):
        mine, theirs = task.get_eval_model(ema=ema).state_dict(), other.get_eval_model(ema=ema).state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_ema_checkpoint_needs_an_ema() -> None:
    with pytest.raises(CheckpointError, match="setup_ema"):
        make(ClassificationTask).load_checkpoint_state({}, ema=True)


def test_task_state_of_another_task_is_refused() -> None:
    task = make(ClassificationTask)
    with pytest.raises(CheckpointError, match="projection"):
        task.load_checkpoint_state(task.get_checkpoint_state()["state_dict"], {"projection": {}})


def test_clip_parameters_leave_out_the_head_on_demand() -> None:
    task = make(ClassificationTask)
    everything, body = list(task.get_clip_parameters()), list(task.get_clip_parameters(exclude_head=True))
    head = {id(parameter) for parameter in task.trainable_module.get_classifier().parameters()}
    assert {id(p) for p in everything} - {id(p) for p in body} == head


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ClassificationTask, LogitDistillationTask])
def test_compile_before_the_loop_gives_the_eager_loss(kind) -> None:  # type: ignore[no-untyped-def]
    task, target = make(kind), torch.arange(4)
    eager = task(images(), target)["loss"]
    evaluated = task.compile()
    assert evaluated is task.get_eval_model()
    result = task(images(), target)
    result["loss"].backward()
    torch.testing.assert_close(result["loss"], eager, rtol=1e-4, atol=1e-4)
    assert all(not key.startswith("_orig_mod") for key in task.get_checkpoint_state()["state_dict"])
