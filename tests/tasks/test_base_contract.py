"""TrainingTask as a base for other tasks: every method of timm's protocol, with and without a trainable module."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm.task
import torch
import torch.distributed
import torch.nn.functional as F
from support import digits_dataset, loader_for, tiny_model
from timm.optim import create_optimizer_v2
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdkit import ClassificationTask, FeatureDistillationTask, LogitDistillationTask, TrainingTask
from kdkit.errors import ConfigError
from kdkit.training.config import TrainConfig
from kdkit.training.train import train


def step(self: Any, input: Tensor, target: Tensor) -> dict[str, Tensor]:
    output = self.net(input)
    return {"loss": F.cross_entropy(output, target), "output": output}


class OwnTask(TrainingTask):
    """A task that sets no trainable module: it is itself what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_model("test_efficientnet")

    forward = step


class TimmTask(timm.task.TrainingTask):  # type: ignore[misc]
    """The same task on timm's base."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_model("test_efficientnet")

    forward = step


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)


def take_steps(task: Any, count: int = 2) -> list[float]:
    optimizer = create_optimizer_v2(task.get_trainable_module(), "sgd", lr=0.05)
    losses = []
    for number in range(count):
        optimizer.zero_grad()
        result = task(*batch())
        result["loss"].backward()
        optimizer.step()
        task.update_ema(step=number + 1)
        losses.append(result["loss"].item())
    return losses


@pytest.fixture
def one_rank(tmp_path: Path) -> Any:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("task", [TrainingTask(), OwnTask()], ids=["bare", "own"])
def test_the_base_does_nothing_on_several_ranks_and_returns_itself(task: TrainingTask) -> None:
    before = dict(task.named_modules())
    assert task.prepare_distributed() is task
    assert task.prepare_distributed(device_ids=[0], find_unused_parameters=True) is task
    assert dict(task.named_modules()) == before


def test_kdkits_tasks_wrap_the_trainable_part_alone(one_rank: None) -> None:
    task = LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model(seed=1))
    assert task.prepare_distributed() is task
    assert isinstance(task.trainable_module, DistributedDataParallel)
    wrapped = [module for module in task.modules() if isinstance(module, DistributedDataParallel)]
    assert wrapped == [task.trainable_module]
    assert not isinstance(task.teacher, DistributedDataParallel)
    with task.no_sync():
        assert task.trainable_module.require_backward_grad_sync is False
    assert [name for name in task.get_checkpoint_state()["state_dict"] if name.startswith("module.")] == []


def test_a_task_without_a_trainable_module_trains_averages_and_clips_as_timms_does() -> None:
    ours, theirs = OwnTask(), TimmTask()
    for task in (ours, theirs):
        assert task.get_trainable_module() is task
        assert task.get_eval_model() is task
        assert not task.has_ema()
        assert task.get_trainable_module(ema=True) is None
    assert take_steps(ours) == take_steps(theirs)
    names = [[name for name, _ in task.named_parameters()] for task in (ours, theirs)]
    assert names[0] == names[1]
    for exclude_head in (False, True):
        clipped = [[p.shape for p in task.get_clip_parameters(exclude_head)] for task in (ours, theirs)]
        assert clipped[0] == clipped[1]
    with ours.no_sync():
        pass
    assert ours.live_teacher is None


def test_its_moving_average_is_the_average_and_is_neither_trained_nor_saved_with_it() -> None:
    task = OwnTask()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task.setup_ema(decay=0.5)
    assert task.has_ema()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.25)
    task.update_ema()
    assert list(task.state_dict()) == list(before)
    assert len(list(task.get_clip_parameters())) == len(list(task.net.parameters()))
    average = task.get_checkpoint_state(ema=True)["state_dict_ema"]
    assert list(average) == list(before)
    for name, value in task.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(average[name], 0.5 * before[name] + 0.5 * value)
    task.setup_ema(decay=0.5)  # a second one replaces the first
    assert torch.equal(
        task.get_checkpoint_state(ema=True)["state_dict_ema"]["net.conv_stem.weight"], task.net.conv_stem.weight
    )


def test_its_moving_average_follows_conversions_and_copies() -> None:
    task = OwnTask()
    task.setup_ema()
    twin = copy.deepcopy(task)
    assert twin.get_trainable_module(ema=True) is not task.get_trainable_module(ema=True)
    pickle.loads(pickle.dumps(task))
    nn.Sequential(task).double()
    assert {p.dtype for p in task.get_trainable_module(ema=True).parameters()} == {torch.float64}
    assert next(twin.get_trainable_module(ema=True).parameters()).dtype == torch.float32


def test_its_checkpoint_goes_through_timms_saver_and_back(tmp_path: Path) -> None:
    task, fresh = OwnTask(), OwnTask()
    optimizer = create_optimizer_v2(task.get_trainable_module(), "adamw", lr=1e-3)
    for each in (task, fresh):
        each.setup_ema(decay=0.5)
    take_steps(task)
    saver = CheckpointSaver(task.get_trainable_module(), optimizer, task=task, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3, metric=1.0)
    assert resume_task_checkpoint(fresh, str(tmp_path / "last.pth.tar"), log_info=False) == 4
    load_task_ema_checkpoint(fresh, str(tmp_path / "last.pth.tar"))
    for ema in (False, True):
        (saved,), (loaded,) = task.get_checkpoint_state(ema).values(), fresh.get_checkpoint_state(ema).values()
        assert all(torch.equal(value, loaded[name]) for name, value in saved.items())


@pytest.mark.slow
def test_it_compiles_in_place_and_its_average_too() -> None:
    task, eager = OwnTask().eval(), OwnTask().eval()
    task.setup_ema()
    assert task.compile(backend="eager") is task.get_eval_model()
    torch.testing.assert_close(task(*batch())["loss"], eager(*batch())["loss"])
    assert task.compile_ema(backend="eager") is task.get_eval_model(ema=True)
    torch.testing.assert_close(task.get_eval_model(ema=True)(*batch())["loss"], eager(*batch())["loss"])
    assert list(task.state_dict()) == list(eager.state_dict())
    assert list(task.get_checkpoint_state(ema=True)["state_dict_ema"]) == list(eager.state_dict())


def test_its_evaluator_is_timms_on_its_device() -> None:
    task = OwnTask()
    evaluator = task.create_evaluator()
    images, target = batch()
    evaluator.update(task(images, target)["output"], target)
    assert evaluator.compute().keys() == TimmTask().create_evaluator().compute().keys()


def test_the_training_loop_trains_it() -> None:
    dataset = digits_dataset(64)
    task = OwnTask()
    loader = loader_for(dataset, task.net, batch_size=16)
    report = train(task, loader, TrainConfig(epochs=2, batch_size=16, lr=0.01, ema_decay=0.9))
    assert len(report.epochs) == 2
    assert task.has_ema()


def test_device_and_dtype_can_be_set_and_convert_the_task() -> None:
    task = LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model(seed=1))
    task.dtype = torch.float64
    assert task.dtype == next(task.trainable_module.parameters()).dtype == torch.float64
    assert next(task.teacher.model.parameters()).dtype == torch.float64
    task.device = "meta"
    assert task.device == next(task.trainable_module.parameters()).device == torch.device("meta")
    with pytest.raises(ConfigError, match=r"floating dtype such as torch.float32, got torch.int64"):
        task.dtype = torch.int64
    with pytest.raises(ConfigError, match=r"floating dtype"):
        TrainingTask(dtype="float32")  # type: ignore[arg-type]


def test_meta_and_integers_are_honoured_as_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        TrainingTask(device="meta").device == TrainingTask(device=torch.device("meta")).device == torch.device("meta")
    )
    requested = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device, **kw: requested.append(device) or empty(*size, **kw))
    TrainingTask(device=0)
    TrainingTask()
    assert requested == [0, "cpu"]  # 0 is the first accelerator, and not "no device"


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the device 'cuda:77' cannot be used here"):
        TrainingTask(device="cuda:77")
    with pytest.raises(ConfigError, match=r"the device 'gpu' cannot be used here"):
        TrainingTask().device = "gpu"


def test_the_default_dtype_is_torchs_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert TrainingTask().dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_class_weights_follow_the_tasks_device_and_stay_in_full_precision() -> None:
    weights = torch.rand(10)
    student, (images, target) = tiny_model("test_efficientnet").eval(), batch()
    task = ClassificationTask(student, nn.CrossEntropyLoss(weight=weights))
    expected = F.cross_entropy(student(images), target, weight=weights)
    torch.testing.assert_close(task(images, target)["loss"], expected)
    nn.Sequential(task).bfloat16()
    assert torch.equal(task.criterion.weight, weights)
    assert task(images.bfloat16(), target)["loss"].dtype == torch.float32
    task.double()
    assert task.criterion.weight.dtype == torch.float64
    assert task(images.double(), target)["loss"].dtype == torch.float64
    assert task.to("meta").criterion.weight.device == torch.device("meta")
    fresh = ClassificationTask(tiny_model(), nn.CrossEntropyLoss(weight=weights.clone()), device="meta")
    assert fresh.criterion.weight.device == torch.device("meta")


def test_what_is_no_criterion_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a criterion is a function of \(logits, target\), got str"):
        ClassificationTask(tiny_model(), "cross_entropy")  # type: ignore[arg-type]


def test_a_task_and_a_teacher_are_shown_in_one_line() -> None:
    task = LogitDistillationTask(
        tiny_model("test_efficientnet"), tiny_model(seed=1), distill_loss={"kl": 0.5, "dist": 2.0}, task_loss_weight=0.3
    )
    text = repr(task)
    assert text.startswith(
        "LogitDistillationTask(student=EfficientNet, teacher='test_resnet', loss=0.3 * task_loss + 1 * "
    )
    assert "(0.5 * kl + 2 * dist)" in text
    assert text.endswith("float32 on cpu)")
    assert repr(task.teacher).startswith("Teacher('test_resnet', ")
    assert "num_classes=10" in repr(task.teacher)
    assert "\n" not in text + repr(task.teacher) + repr(ClassificationTask(tiny_model()))
    feature = FeatureDistillationTask(tiny_model("test_efficientnet"), "ema")
    assert "teacher='ema'" in repr(feature)
