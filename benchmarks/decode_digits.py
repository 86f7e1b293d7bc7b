"""What several views of an image in one batch do to a student: accuracy on digits at equal samples.

    python benchmarks/decode_digits.py                         (about 10 minutes on 2 calm cores)

A teacher is trained on 600 of scikit-learn's digits and cached in 8 views. Students of another architecture learn from
that cache with k = 1, 2, 4 and 8 views per decode: the same pairs of image and view, the same number of steps, the same
schedule; only which of them share a batch differs. Three seeds each; the seed sets the student's weights and the order.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from _result import Report, parser
from sklearn.datasets import load_digits

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.recipe import ViewRecipe
from kdkit.training.config import TrainConfig
from kdkit.training.train import train

SEEN, HELD_OUT, VIEWS, BATCH = 600, 600, 8, 64
PER_DECODE, SEEDS = (1, 2, 4, 8), (0, 1, 2)
RECIPE = ViewRecipe(size=32, scale=(0.5, 1.0), hflip=0.0, num_views=VIEWS)


def digits(first: int, count: int, recipe: ViewRecipe) -> ReplayedDataset:
    data = load_digits()
    images = (data.images[first : first + count] * 15.9).astype(np.uint8)
    return ReplayedDataset(ArraySource(images, data.target[first : first + count]), recipe, num_classes=10)


@torch.no_grad()
def top1(model: torch.nn.Module) -> float:
    """Top-1 accuracy on the held-out digits, percent."""
    held_out = digits(SEEN, HELD_OUT, ViewRecipe.evaluation(RECIPE.size, crop_pct=1.0))
    loader = kdkit.create_loader(held_out, model, batch_size=BATCH, num_workers=0, shuffle=False)
    model.eval()
    return 100 * float(torch.cat([model(b.input).argmax(dim=1) == b.target for b in loader]).float().mean())


def trained_teacher(epochs: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model("test_resnet", num_classes=10)
    loader = kdkit.create_loader(digits(0, SEEN, RECIPE), model, batch_size=BATCH, num_workers=0)
    train(kdkit.ClassificationTask(model), loader, TrainConfig(epochs=epochs, lr=2e-3, batch_size=BATCH))
    return model


def student_top1(cache: Path, views: int, seed: int, epochs: int) -> float:
    """Top-1 of a student that learns from the cache's outputs alone, percent."""
    teacher = kdkit.open_cache(cache)
    dataset = digits(0, SEEN, RECIPE)
    teacher.match(dataset)
    torch.manual_seed(seed)
    student: torch.nn.Module = timm.create_model("test_efficientnet", num_classes=10)
    task = kdkit.LogitDistillationTask(student, teacher=None, task_loss_weight=0.0)
    loader = kdkit.create_loader(
        dataset, student, batch_size=BATCH, views_per_decode=views, num_workers=0, seed=seed, num_epochs=epochs
    )
    config = TrainConfig(epochs=epochs, lr=2e-3, batch_size=BATCH, views_per_decode=views, seed=seed)
    train(task, loader, config, teacher_source=teacher)
    return top1(student)


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    epochs, seeds = (VIEWS, SEEDS[:1]) if options.quick else (2 * VIEWS, SEEDS)
    report = Report("decode_digits", "Several views of an image in one batch", quick=options.quick)
    teacher, rows = trained_teacher(2 if options.quick else VIEWS), []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "teacher.h5"
        config = BuildConfig(codec="float16", num_workers=0, batch_size=BATCH)
        kdkit.build_cache(kdkit.create_teacher(teacher), digits(0, SEEN, RECIPE), cache, config)
        for views in PER_DECODE:
            found = [student_top1(cache, views, seed, epochs) for seed in seeds]
            report.figure(f"k = {views}: top-1 by seed, %", [round(value, 2) for value in found])
            spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else "-"
            rows.append([views, f"{statistics.mean(found):.2f}", spread, ", ".join(f"{value:.2f}" for value in found)])
            print(rows[-1], flush=True)
    report.text(
        f"test_resnet ({report.figure('teacher top-1, %', round(top1(teacher), 2))} % on held-out digits) cached in "
        f"{VIEWS} views of {SEEN} digits; test_efficientnet learns from the cache alone for {epochs} epochs in batches",
        f"of {BATCH}, so in {epochs * (SEEN // BATCH)} steps, whatever k; top-1 on {HELD_OUT} held-out digits.",
    )
    report.table(["k", "mean top-1, %", "standard deviation", "by seed"], rows)
    report.text(
        f"With {len(seeds)} seeds, differences within the standard deviations are no evidence either way, and digits",
        "say nothing about other data.",
    )
    report.write(options.output)


if __name__ == "__main__":
    main()
