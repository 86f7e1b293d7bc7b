"""Losses that remember the samples of the dataset (crd): rows reach them, and a stopped run resumes with its memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support import digits_dataset, loader_for, tiny_model

from kdkit import FeatureDistillationTask
from kdkit.errors import ConfigError
from kdkit.runtime.progress import Display
from kdkit.tasks import LossTerm
from kdkit.training.checkpoint import Checkpoints
from kdkit.training.config import TrainConfig
from kdkit.training.preflight import preflight
from kdkit.training.train import train
from kdkit.types import Batch

COUNT = 15
CONFIG = TrainConfig(epochs=2, lr=1e-2, ema_decay=0.5)


def make(seed: int = 0) -> FeatureDistillationTask:
    torch.manual_seed(seed)
    crd = LossTerm("crd", 0.8, {"negatives": 4, "width": 8})
    return FeatureDistillationTask(tiny_model(seed=seed), tiny_model(seed=1), distill_loss=[crd], num_rows=COUNT)


class StopAt(Display):
    """Sends this process SIGTERM in a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, count: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def run(task: FeatureDistillationTask, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    train(task, loader_for(digits_dataset(COUNT), tiny_model(), batch_size=6), CONFIG, **options)
    return task.state_dict()


def test_a_run_that_stops_within_an_epoch_resumes_with_its_memory_bit_for_bit(tmp_path: Path) -> None:
    whole = run(make())
    with pytest.raises(SystemExit):
        run(make(), checkpoints=Checkpoints(tmp_path), display=StopAt(4))
    resumed = run(make(seed=9), checkpoints=Checkpoints(tmp_path, resume=True))
    assert any(name.endswith("student_memory") for name in whole)
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []


def test_the_check_before_the_first_step_remembers_nothing() -> None:
    task = make()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    loader = loader_for(digits_dataset(COUNT), tiny_model(), batch_size=6)
    preflight(task, loader, task.live_teacher, CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_the_number_of_samples_and_their_rows_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"'crd' remembers every sample of the dataset: pass num_rows=len\(dataset\)"):
        FeatureDistillationTask(tiny_model(), tiny_model(seed=1), distill_loss="crd")
    with pytest.raises(ConfigError, match="num_rows follows from the taps, the teacher and the data"):
        FeatureDistillationTask(
            tiny_model(), tiny_model(seed=1), distill_loss=LossTerm("crd", 1.0, {"num_rows": 3}), num_rows=3
        )
    task, images = make(), torch.randn(2, 3, 32, 32)
    output = task.teacher(Batch(images, torch.zeros(0)))
    with pytest.raises(ConfigError, match=r"needs the row of each sample: task\(input, target, .*, batch\.row\)"):
        task(images, torch.tensor([1, 2]), output)
