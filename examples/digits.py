"""Shared by the other examples: scikit-learn's digits as replayed views, and a teacher trained on them.

    python examples/digits.py

Measured on one CPU core: 10 s; teacher 75.0 % top-1 on held-out digits.
"""

from __future__ import annotations

import functools

import numpy as np
import timm
import torch
from sklearn.datasets import load_digits

import kdkit
from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.training.config import TrainConfig
from kdkit.training.train import train
from kdkit.types import Normalization

SEEN = 600
"""Number of training images; 300 others are held out."""


def training(num_views: int = 2) -> ReplayedDataset:
    data = load_digits()
    images = (data.images[:SEEN] * 15.9).astype(np.uint8)
    recipe = ViewRecipe(size=32, scale=(0.6, 1.0), hflip=0.0, num_views=num_views)
    return ReplayedDataset(ArraySource(images, data.target[:SEEN]), recipe)


def held_out() -> ReplayedDataset:
    data = load_digits()
    images = (data.images[SEEN : SEEN + 300] * 15.9).astype(np.uint8)
    return ReplayedDataset(ArraySource(images, data.target[SEEN : SEEN + 300]), ViewRecipe.evaluation(32, crop_pct=1.0))


def load(dataset: ReplayedDataset, model: torch.nn.Module, *, shuffle: bool = True, **ranks: int) -> ReplayLoader:
    """Batches of 50 in the model's normalisation; `rank` and `world_size` are for EpochSampler."""
    sampler = EpochSampler(range(len(dataset)), 50, num_views=dataset.recipe.num_views, shuffle=shuffle, **ranks)
    return ReplayLoader(dataset, sampler, Normalization.of(model))


@functools.cache
def teacher() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    train(kdkit.ClassificationTask(model), load(training(), model), TrainConfig(epochs=3, lr=2e-3))
    return model


@torch.no_grad()
def top1(model: torch.nn.Module) -> float:
    """Top-1 accuracy on the held-out digits, percent."""
    model.eval()
    hits = [model(batch.input).argmax(dim=1) == batch.target for batch in load(held_out(), model, shuffle=False)]
    return 100 * float(torch.cat(hits).float().mean())


if __name__ == "__main__":
    print(f"teacher: {top1(teacher()):.1f} % top-1")
