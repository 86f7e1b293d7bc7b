"""Live and cached training are the same training.

Compared, with augmentation on: on one student, the loss of every step by the live teacher and by a float32 cache of
it, to 1e-6; and two students trained apart, one on each, over an epoch of small steps, to 1e-5. Not promised: equal
bits, since a teacher's matrix products may round otherwise in another batch, and training amplifies any difference.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support import RECIPE, digits_dataset, loader_for, tiny_model
from torch import nn

from kdkit import LogitDistillationTask, build_cache, create_loader, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.training.config import TrainConfig
from kdkit.training.train import train


@pytest.fixture(params=["test_resnet", "test_efficientnet"])
def teacher(request: pytest.FixtureRequest) -> nn.Module:
    """One with the student's normalisation, one with another."""
    return tiny_model(request.param, seed=1)


def cached(teacher: nn.Module, dataset: ReplayedDataset, path: Path, num_workers: int) -> CachedTeacher:
    config = BuildConfig(codec="float32", num_workers=num_workers, batch_size=50)
    build_cache(create_teacher(teacher), dataset, path, config)
    return open_cache(path, dataset)


def train_live_beside_cached(
    task: LogitDistillationTask, loader: ReplayLoader, cache: CachedTeacher, optimizer: torch.optim.Optimizer
) -> int:
    """Trains one epoch with the live teacher, each step's losses compared with the cache's; returns the steps."""
    steps = 0
    for batch in loader:
        from_cache = task(batch.input, batch.target, cache(batch))
        live = task(batch.input, batch.target)
        for term in ("loss", "task_loss", "kd_loss"):
            torch.testing.assert_close(from_cache[term], live[term], rtol=1e-6, atol=1e-6)
        optimizer.zero_grad()
        live["loss"].backward()
        optimizer.step()
        steps += 1
    return steps


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_step_has_the_same_loss_by_live_teacher_and_by_cache(
    tmp_path: Path, teacher: nn.Module, num_workers: int
) -> None:
    dataset = digits_dataset(90)
    cache = cached(teacher, dataset, tmp_path / "t.h5", num_workers)
    task = LogitDistillationTask(tiny_model("test_efficientnet"), teacher, temperature=2.0)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.01)
    loader = loader_for(dataset, task.trainable_module, num_workers=num_workers)
    steps = 0
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        steps += train_live_beside_cached(task, loader, cache, optimizer)
    assert steps == 6


def test_every_step_has_the_same_loss_where_mixed_views_share_a_decode(tmp_path: Path, teacher: nn.Module) -> None:
    recipe = dataclasses.replace(RECIPE, num_views=8, mixup_alpha=0.8, cutmix_alpha=1.0, views_per_partner=4)
    dataset = digits_dataset(50, recipe)
    cache = cached(teacher, dataset, tmp_path / "t.h5", num_workers=0)
    task = LogitDistillationTask(tiny_model("test_efficientnet"), teacher, temperature=2.0)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.01)
    loader = create_loader(dataset, task, batch_size=20, views_per_decode=4, num_workers=0)
    steps = 0
    for _ in range(5):
        steps += train_live_beside_cached(task, loader, cache, optimizer)
    assert steps == 10


@pytest.mark.slow
def test_two_students_trained_apart_stay_together(tmp_path: Path, teacher: nn.Module) -> None:
    dataset = digits_dataset(180)
    cache = cached(teacher, dataset, tmp_path / "t.h5", num_workers=0)
    losses: dict[str, list[float]] = {}
    for way in ("live", "cached"):
        task = LogitDistillationTask(tiny_model("test_efficientnet"), teacher if way == "live" else None)
        loader = loader_for(dataset, task.trainable_module)
        config = TrainConfig(epochs=1, opt="sgd", lr=1e-3, weight_decay=0.0)
        records = train(task, loader, config, teacher_source=cache if way == "cached" else None).epochs
        losses[way] = [record[term] for record in records for term in ("loss", "task_loss", "kd_loss")]
    assert losses["cached"] == pytest.approx(losses["live"], rel=1e-5)
