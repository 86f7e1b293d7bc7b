"""Scikit-learn's digits for benchmarks: a teacher is trained on them and cached, students learn from its outputs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from _result import Report
from sklearn.datasets import load_digits

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.recipe import ViewRecipe
from kdkit.training.config import TrainConfig
from kdkit.training.train import train

SEEN, HELD_OUT, BATCH, SEEDS = 600, 600, 64, (0, 1, 2)


def recipe_of(views: int) -> ViewRecipe:
    return ViewRecipe(size=32, scale=(0.5, 1.0), hflip=0.0, num_views=views)


def digits(first: int, count: int, recipe: ViewRecipe) -> ReplayedDataset:
    data = load_digits()
    images = (data.images[first : first + count] * 15.9).astype(np.uint8)
    return ReplayedDataset(ArraySource(images, data.target[first : first + count]), recipe, num_classes=10)


@torch.no_grad()
def top1(model: torch.nn.Module) -> float:
    """Top-1 accuracy on the held-out digits, percent."""
    held_out = digits(SEEN, HELD_OUT, ViewRecipe.evaluation(32, crop_pct=1.0))
    loader = kdkit.create_loader(held_out, model, batch_size=BATCH, num_workers=0, shuffle=False)
    model.eval()
    return 100 * float(torch.cat([model(b.input).argmax(dim=1) == b.target for b in loader]).float().mean())


def trained_teacher(epochs: int) -> torch.nn.Module:
    """test_resnet, trained on as many views as epochs."""
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model("test_resnet", num_classes=10)
    loader = kdkit.create_loader(digits(0, SEEN, recipe_of(epochs)), model, batch_size=BATCH, num_workers=0)
    train(kdkit.ClassificationTask(model), loader, TrainConfig(epochs=epochs, lr=2e-3, batch_size=BATCH))
    return model


def cached(teacher: torch.nn.Module, views: int, folder: Path) -> Path:
    """The teacher's outputs for so many views of the seen digits, in float16."""
    path = folder / f"{views}.h5"
    config = BuildConfig(codec="float16", num_workers=0, batch_size=BATCH)
    kdkit.build_cache(kdkit.create_teacher(teacher), digits(0, SEEN, recipe_of(views)), path, config)
    return path


def student_top1(path: Path, views: int, seed: int, epochs: int, views_per_decode: int = 1) -> float:
    """Top-1 of test_efficientnet that learns from the outputs alone, percent; `seed` sets its weights and the order."""
    dataset = digits(0, SEEN, recipe_of(views))
    teacher = kdkit.open_cache(path, dataset)
    torch.manual_seed(seed)
    student: torch.nn.Module = timm.create_model("test_efficientnet", num_classes=10)
    task = kdkit.LogitDistillationTask(student, teacher=None, task_loss_weight=0.0)
    loader = kdkit.create_loader(
        dataset,
        student,
        batch_size=BATCH,
        views_per_decode=views_per_decode,
        num_workers=0,
        seed=seed,
        num_epochs=epochs,
    )
    config = TrainConfig(epochs=epochs, lr=2e-3, batch_size=BATCH, views_per_decode=views_per_decode, seed=seed)
    train(task, loader, config, teacher_source=teacher)
    return top1(student)


def compare(
    report: Report, name: str, settings: Sequence[int], run: Callable[[int, int], float], seeds: Sequence[int]
) -> None:
    """A table of top-1 by setting, of `run(setting, seed)`."""
    rows = []
    for setting in settings:
        found = [run(setting, seed) for seed in seeds]
        report.figure(f"{name} = {setting}: top-1 by seed, %", [round(value, 2) for value in found])
        spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else "-"
        rows.append([setting, f"{statistics.mean(found):.2f}", spread, ", ".join(f"{value:.2f}" for value in found)])
        print(rows[-1], flush=True)
    report.table([name, "mean top-1, %", "standard deviation", "by seed"], rows)
    report.text(
        f"With {len(seeds)} seeds, differences within the standard deviations are no evidence either way, and digits",
        "say nothing about other data.",
    )
