"""What a teacher costs in memory when it is a cache: nothing that counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from support import tiny_model
from torch.profiler import ProfilerActivity, profile

from kdkit import ClassificationTask, LogitDistillationTask, TrainingTask, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.types import Batch, Normalization

CLASSES, SIZE, BATCH = 1000, 96, 16


def images_of_1000_classes() -> ReplayedDataset:
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(2 * BATCH, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(CLASSES, size=2 * BATCH)
    return ReplayedDataset(ArraySource(pixels, labels), ViewRecipe(size=SIZE, hflip=0.0))


def peak_bytes(make: Callable[[], TrainingTask], batches: list[Batch], cache: CachedTeacher | None = None) -> int:
    """Most bytes of tensors alive at once from making the task to the end of its second step, by torch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task = make()
        optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.01, momentum=0.9)
        for batch in batches:
            outputs = () if cache is None else (cache(batch),)
            optimizer.zero_grad()
            task(batch.input, batch.target, *outputs)["loss"].backward()
            optimizer.step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(alive.max())


@pytest.mark.slow
def test_training_from_a_dense_int8_cache_needs_the_memory_of_plain_training(tmp_path: Path) -> None:
    dataset, teacher = images_of_1000_classes(), tiny_model(num_classes=CLASSES)
    build_cache(create_teacher(teacher), dataset, tmp_path / "t.h5", BuildConfig(codec="int8", num_workers=0))
    cache = open_cache(tmp_path / "t.h5", dataset)

    def student() -> torch.nn.Module:
        return timm.create_model("resnet18", num_classes=CLASSES)

    batches = list(ReplayLoader(dataset, EpochSampler(range(len(dataset)), BATCH), Normalization.of(student())))
    assert len(batches) == 2
    plain = peak_bytes(lambda: ClassificationTask(student()), batches)
    cached = peak_bytes(lambda: LogitDistillationTask(student()), batches, cache)
    live = peak_bytes(lambda: LogitDistillationTask(student(), student()), batches)
    print(f"peak of plain {plain:,}, from the cache {cached / plain:.4f}, live {live / plain:.4f}")
    assert cached / plain <= 1.02
    assert live / plain > 1.2  # the measure does see a teacher
