"""Epochs in which the head learns alone, compared with a loop by hand, task by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import digits_dataset, loader_for, tiny_model
from torch import nn

from kdkit import ClassificationTask, FeatureDistillationTask, LogitDistillationTask, TrainingTask
from kdkit.errors import ConfigError
from kdkit.runtime.progress import Display
from kdkit.training.checkpoint import Checkpoints
from kdkit.training.config import TrainConfig
from kdkit.training.train import train

CONFIG = TrainConfig(epochs=3, frozen_epochs=2, lr=2e-3, ema_decay=0.5)
TASKS: dict[str, Any] = {
    "labels": lambda student: ClassificationTask(student),
    "a transformer's two heads": lambda _: ClassificationTask(tiny_model("test_vit")),
    "the student's own average as teacher": lambda student: LogitDistillationTask(student, "ema"),
    "features, through a projection": lambda student: FeatureDistillationTask(student, tiny_model("test_vit", seed=1)),
}


class Watch(Display):
    """Notes what has a gradient at each step, and the student's state after each epoch."""

    def __init__(self, task: TrainingTask, *, stops_after: int | None = None) -> None:
        self.task, self.stops_after, self.steps = task, stops_after, 0
        self.learning: list[set[str]] = []
        self.states = [state_of(task)]

    def __call__(self, count: int) -> None:
        self.steps += 1
        if self.steps == self.stops_after:
            raise KeyboardInterrupt
        found = self.task.get_trainable_module().named_parameters()
        self.learning.append({name for name, parameter in found if parameter.grad is not None})

    def write(self, text: str) -> None:
        self.states.append(state_of(self.task))


def state_of(task: TrainingTask) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.get_eval_model().state_dict().items()}


def run(task: TrainingTask, config: TrainConfig = CONFIG, *, stops_after: int | None = None, **options: Any) -> Watch:
    watch = Watch(task, stops_after=stops_after)
    loader = loader_for(digits_dataset(32), task.get_eval_model(), batch_size=16)
    train(task, loader, config, display=watch, **options)
    return watch


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The modules whose weights or statistics differ."""
    return {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("name", TASKS)
def test_the_body_has_no_gradient_and_stays_bit_for_bit_until_its_epoch(name: str) -> None:
    watch = run(TASKS[name](tiny_model()))
    start, first, second, last = watch.states
    [head] = moved(start, first)
    assert head in ("fc", "head")
    assert moved(first, second) == {head}
    assert len(moved(second, last)) > 2
    frozen, free = watch.learning[:4], watch.learning[4:]
    for step in frozen:
        parts = {part for name in step if (part := name.removeprefix("student.").partition(".")[0]) != head}
        assert parts <= {"comparisons"}, "no more than the projection learns with the head"
    assert all(len(step) > len(frozen[0]) for step in free)
    assert all(parameter.requires_grad for parameter in watch.task.get_trainable_module().parameters())
    assert moved(last, watch.task.get_eval_model(ema=True).module.state_dict() if name == "labels" else start)


def test_a_linear_probe_equals_one_by_hand() -> None:
    config = TrainConfig(
        epochs=2, frozen_epochs=2, opt="momentum", opt_options={"momentum": 0.9}, lr=0.1, weight_decay=0.0, sched="none"
    )
    task = ClassificationTask(tiny_model())
    run(task, config)
    plain = tiny_model().eval()
    optimizer = torch.optim.SGD(plain.fc.parameters(), lr=0.1, momentum=0.9)
    loader = loader_for(digits_dataset(32), plain, batch_size=16)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(batch.input), batch.target).backward()
            optimizer.step()
    torch.testing.assert_close(dict(task.trainable_module.state_dict()), dict(plain.state_dict()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stops_after", [2, 5])  # in a frozen epoch, and after it
def test_a_run_that_stops_resumes_bit_for_bit(tmp_path: Path, stops_after: int) -> None:
    config = TrainConfig(**{**vars(CONFIG), "checkpoint_every": 1})
    whole = run(ClassificationTask(tiny_model()), config)
    stopped = ClassificationTask(tiny_model())
    with pytest.raises(KeyboardInterrupt):
        run(stopped, config, stops_after=stops_after, checkpoints=Checkpoints(tmp_path))
    assert all(parameter.requires_grad for parameter in stopped.trainable_module.parameters())
    task = ClassificationTask(tiny_model(seed=5))
    run(task, config, checkpoints=Checkpoints(tmp_path, resume=True))
    assert moved(state_of(whole.task), state_of(task)) == set()


def test_what_cannot_be_frozen_is_refused() -> None:
    with pytest.raises(ConfigError, match="frozen_epochs must be from 0 to epochs = 2, got 3"):
        TrainConfig(epochs=2, frozen_epochs=3)
    headless = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
    with pytest.raises(ConfigError, match="Sequential names none: set its pretrained_cfg"):
        run(headless)
    silent = FeatureDistillationTask(tiny_model(), tiny_model(seed=1), distill_loss="similarity", task_loss_weight=0.0)
    with pytest.raises(ConfigError, match="no weight that learns takes part in the loss"):
        run(silent)
