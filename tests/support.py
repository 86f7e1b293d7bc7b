"""Small real parts that many tests use: timm's tiny models and scikit-learn's digits."""

from __future__ import annotations

import functools
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn

from kdkit.cache.types import Array
from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.types import Batch, Normalization, TeacherOutput

CLASSES = [str(digit) for digit in range(10)]
RECIPE = ViewRecipe(size=32, scale=(0.3, 1.0), hflip=0.5, auto_augment="rand-m5-n2-mstd0.5", num_views=2, seed=7)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails a call that waits for ever, as one that opens a pipe would."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tiny_model(name: str = "test_resnet", *, seed: int = 0, num_classes: int = 10) -> nn.Module:
    """A real timm model with fewer than half a million parameters, its weights drawn from `seed`."""
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=num_classes)


class Pixels(nn.Module):
    """A teacher's model without cost: its logits are pixels."""

    num_classes = 10

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10].clone()


class Watched(Teacher):
    """A teacher without cost that calls `after` with the number of the batch and its logits before it returns them."""

    def __init__(self, after: Callable[[int, torch.Tensor], None]) -> None:
        super().__init__(Pixels())
        self.after, self.batches = after, 0

    def forward(self, batch: Batch) -> TeacherOutput:
        output = super().forward(batch)
        assert output.logits is not None
        self.after(self.batches, output.logits)
        self.batches += 1
        return output


@functools.cache
def _all_digits() -> tuple[Array, Array]:
    """Images and classes; to read their text once takes as long as many a test."""
    data = load_digits()
    return (data.images * 15).astype(np.uint8), data.target


def digits(count: int = 200) -> ArraySource:
    """The first `count` digits, 8 by 8 pixels; a test may change its own."""
    images, targets = (values[:count].copy() for values in _all_digits())
    return ArraySource(images, targets, keys=[f"digit-{index}" for index in range(count)], class_names=CLASSES)


def write_digits(root: Path, count: int) -> Path:
    """The first `count` digits as an image folder, CLASS/NUMBER.png."""
    source = digits(count)
    for index in range(count):
        image, target = source[index]
        place = root / CLASSES[target] / f"{index:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    return root


def digits_dataset(count: int = 200, recipe: ViewRecipe = RECIPE) -> ReplayedDataset:
    """The first `count` digits, replayed."""
    return ReplayedDataset(digits(count), recipe)


def loader_for(dataset: ReplayedDataset, student: nn.Module, *, batch_size: int = 32, **options: int) -> ReplayLoader:
    """A shuffling loader in the student's normalisation."""
    sampler = EpochSampler(range(len(dataset)), batch_size, num_views=dataset.recipe.num_views)
    return ReplayLoader(dataset, sampler, Normalization.of(student), **options)


def cache_contents(path: Path) -> dict[str, bytes]:
    """Every byte of a packed cache that equal builds have in common: its metadata and all datasets, by plain h5py."""
    with h5py.File(path, "r", locking=False) as file:
        found = {"metadata": bytes(np.bytes_(file.attrs["kdkit"]))}
        file.visititems(
            lambda name, item: found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
        )
    return found


class CountingDigits(ArraySource):
    """Digits that count how often each is decoded."""

    def __init__(self, count: int, unreadable: tuple[int, ...] = ()) -> None:
        plain = digits(count)
        super().__init__(plain.images, plain.targets, keys=plain.keys, class_names=CLASSES)
        self.decoded: Counter[int] = Counter()
        self.unreadable = unreadable

    def __getitem__(self, index: int) -> Any:
        self.decoded[index] += 1
        if index in self.unreadable:
            raise OSError("truncated")
        return super().__getitem__(index)
