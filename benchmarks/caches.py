"""Caches that add up: the step time with two caches, the speed of statistics, and empty crops that are left out.

    python benchmarks/caches.py [--quick]

About four minutes on 2 CPU cores, without downloads. Three parts: a student's step with the mix of two caches relative
to one; rows/s of statistics; and two examples of --train.min-confidence, from which no claim follows: digits of which
many crops are empty, and small crops of photographs. `benchmarks/kills.py` kills the commands that change caches.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from _photographs import CropSource, create_imagenet_model
from _result import Report, Spread, parser, ratio, take_turns
from PIL import Image
from sklearn.datasets import load_digits

from kdkit import (
    CacheSpec,
    CacheWriter,
    LogitDistillationTask,
    ViewRecipe,
    build_cache,
    create_loader,
    create_teacher,
    open_cache,
    open_dataset,
)
from kdkit.building.config import BuildConfig
from kdkit.cache.codecs import create_codec
from kdkit.data import ArraySource, ReplayedDataset

BATCH, SIZE, CLASSES, STEP_TARGET = 32, 64, 1000, 1.05


def write_cache(path: Path, dataset: ReplayedDataset, codec: str, num_classes: int, seed: int) -> None:
    """A cache of random logits of the dataset's images."""
    generator = torch.Generator().manual_seed(seed)
    sample = 4 * torch.randn(2048, num_classes, generator=generator)
    spec = CacheSpec(
        keys=dataset.keys,
        num_views=dataset.recipe.num_views,
        codecs={"logits": create_codec(codec, num_classes).fit(sample)},
        recipe=dataset.recipe,
        class_names=dataset.class_names,
        names_classes=False,
    )
    with CacheWriter.create(path, spec) as writer:
        for shard in writer.missing():
            rows = torch.arange(shard.num_rows) % len(sample)
            writer.write(shard, {"logits": sample[rows]})
        writer.finish()


def compare_steps(folder: Path, turns: int) -> Spread:
    """Seconds of a step with the mix of two lowrank caches relative to one, resnet18 at 64 pixels."""
    images = np.random.default_rng(0).integers(0, 255, (256, SIZE, SIZE), dtype=np.uint8)
    source = ArraySource(images, np.arange(256) % 10, keys=[f"k{n}" for n in range(256)])
    dataset = ReplayedDataset(source, ViewRecipe(size=SIZE), num_classes=CLASSES)
    for seed in (0, 1):
        write_cache(folder / f"{seed}.h5", dataset, "lowrank", CLASSES, seed)
    student = timm.create_model("resnet18", num_classes=CLASSES)
    task = LogitDistillationTask(student, task_loss_weight=0.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    batch = next(iter(create_loader(dataset, student, batch_size=BATCH, num_workers=0)))
    readers = {
        "one": open_cache(folder / "0.h5", dataset),
        "two": open_cache([folder / "0.h5", folder / "1.h5"], dataset),
    }

    def step(name: str) -> None:
        optimizer.zero_grad()
        task(batch.input, batch.target, readers[name](batch))["loss"].backward()
        optimizer.step()

    times = take_turns({name: lambda name=name: step(name) for name in readers}, turns)
    return ratio(times["two"], times["one"])


def measure_statistics(folder: Path, rows: int) -> dict[str, float]:
    """Codec -> rows/s of the statistics of a cache of 1,000 classes."""
    source = ArraySource(np.zeros((rows, 8, 8), np.uint8), np.zeros(rows, int), keys=[f"k{n}" for n in range(rows)])
    dataset, found = ReplayedDataset(source, ViewRecipe(size=8), num_classes=CLASSES), {}
    for codec in ("lowrank", "topk", "int8", "float16"):
        write_cache(folder / f"{codec}.h5", dataset, codec, CLASSES, 0)
        cache = open_cache(folder / f"{codec}.h5")
        begun = time.perf_counter()
        cache.statistics()
        found[codec] = rows / (time.perf_counter() - begun)
    return found


def empty_crops(folder: Path, epochs: int) -> dict[str, object]:
    """Digits in a corner of a black image, whose crops often miss them: what is left out, and a student's top-1."""
    data = load_digits()
    images = np.zeros((1797, 32, 32), np.uint8)
    place = random.Random(0)
    for image, small in zip(images, data.images, strict=True):
        top, left = place.randrange(17), place.randrange(17)
        image[top : top + 16, left : left + 16] = np.kron(small * 15, np.ones((2, 2)))
    for number, (image, label) in enumerate(zip(images, data.target, strict=True)):
        part = "val" if number % 4 == 0 else "train"
        (folder / part / f"d{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / part / f"d{label}" / f"{number}.png")
    fixed = ["--workers", "0", "--device", "cpu", "--epochs", str(epochs), "--batch-size", "64", "--lr", "2e-3"]

    def kdkit(*arguments: str) -> str:
        command = [sys.executable, "-m", "kdkit", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return " ".join((done.stderr + done.stdout).split())

    kdkit("distill", "train", "--student", "test_resnet", *fixed, "--recipe", "eval", "--size", "32", "-o", "teacher")
    size = ["--views", "8", "--size", "32", "--recipe.scale", "[0.1,0.4]", "--codec", "float16"]
    kdkit("cache", "build", "train", "--teacher", "teacher", *size, "--workers", "0", "--device", "cpu", "-o", "t.h5")
    found: dict[str, object] = {}
    for name, options in {
        "all views": [],
        "min_confidence 0.9": ["--train.min-confidence", "0.9"],
        "label_agreement": ["--train.label-agreement"],
    }.items():
        run = name.replace(" ", "_")
        student = ["--student", "test_resnet", "--val", "val", *fixed, *options, "-o", run]
        shown = kdkit("distill", "train", "--cache", "t.h5", *student)
        left_out = shown.partition(" left out")[0].rpartition(" ")[2] if "left out" in shown else "0%"
        found[name] = {"left out": left_out, "top-1": shown.partition("best top-1 ")[2].partition(" %")[0]}
    return found | describe_blank(folder)


def describe_blank(folder: Path) -> dict[str, str]:
    """How many views have no lit pixel, and how many of these and of the others min_confidence 0.9 leaves out."""
    cache = open_cache(folder / "t.h5")
    dataset = open_dataset(folder / "train", cache=cache)
    rows = torch.arange(0, len(dataset), 5)
    blank = np.array([[int(dataset[row, view].image.max()) == 0 for view in range(8)] for row in rows.tolist()])
    low = cache.statistics().top1_probability[cache.rows_of(rows)] < 0.9
    return {
        "crops without a lit pixel": f"{blank.mean():.1%}",
        "of these below 0.9": f"{low[blank].mean():.1%}",
        "of the others below 0.9": f"{low[~blank].mean():.1%}",
    }


def small_crops(folder: Path, crops: int) -> dict[str, dict[str, float]]:
    """Threshold -> what min_confidence leaves out of small crops of photographs, and whether it is what is wrong.

    A view is right if its likeliest class is that of the whole half photograph; the teacher is tf_efficientnet_lite0.
    """
    teacher = create_teacher(create_imagenet_model())
    recipes = {"whole": ViewRecipe.evaluation(224), "small": ViewRecipe(size=224, scale=(0.02, 0.3), num_views=4)}
    found = {}
    for name, recipe in recipes.items():
        source = CropSource(1 if name == "whole" else crops)
        config = BuildConfig(codec="float16", batch_size=32, num_workers=0)
        build_cache(teacher, ReplayedDataset(source, recipe), folder / f"{name}.h5", config)
        found[name] = open_cache(folder / f"{name}.h5").statistics()
    is_right = found["small"].top1_class == found["whole"].top1_class.repeat(crops, axis=0)
    shares = {}
    for threshold in (0.1, 0.3, 0.5):
        kept = found["small"].top1_probability >= threshold
        shares[str(threshold)] = {
            "left out": float(1 - kept.mean()),
            "right of the kept": float(is_right[kept].mean()),
            "right of those left out": float(is_right[~kept].mean()),
        }
    return shares


def report_steps(report: Report, folder: Path, *, quick: bool) -> None:
    step = report.figure("step_two_caches_over_one", compare_steps(folder, 10 if quick else 60))
    report.text("Step time of resnet18 at 64 pixels, batch 32, with the mix of two lowrank caches relative to one.")
    report.table(["", "ratio", "target, at most"], [["two caches / one", step, STEP_TARGET]])


def report_statistics(report: Report, folder: Path, *, quick: bool) -> None:
    speeds = report.figure("statistics_rows_per_second", measure_statistics(folder, 4096 if quick else 65536))
    report.table(["codec, 1,000 classes", "statistics, rows/s"], [[c, f"{speed:,.0f}"] for c, speed in speeds.items()])


def report_empty(report: Report, folder: Path, *, quick: bool) -> None:
    crops = report.figure("empty_crops", empty_crops(folder, 2 if quick else 20))
    report.text("Digits in a black image, crops of 10 to 40 % of its area. An example; no claim follows from it.")
    report.table(
        ["views", "left out", "top-1 in %"], [[n, *c.values()] for n, c in crops.items() if isinstance(c, dict)]
    )
    texts = [f"{name}: {share}" for name, share in crops.items() if isinstance(share, str)]
    report.text(f"{'; '.join(texts).capitalize()}.")


def report_photographs(report: Report, folder: Path, *, quick: bool) -> None:
    photographs = report.figure("small_crops", small_crops(folder, 2 if quick else 16))
    report.text("Crops of 2 to 30 % of half a photograph; a view is right if its likeliest class is that of the whole.")
    header = ["min_confidence", *next(iter(photographs.values()))]
    report.table(header, [[t, *(f"{100 * v:.0f} %" for v in p.values())] for t, p in photographs.items()])


PARTS = {
    "steps": report_steps,
    "statistics": report_statistics,
    "empty": report_empty,
    "photographs": report_photographs,
}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--part", choices=PARTS, help="one part alone, whose result has its name")
    arguments = made.parse_args()
    name = f"caches-{arguments.part}" if arguments.part else "caches"
    report = Report(name, "Caches that add up", arguments.quick)
    for part in [arguments.part] if arguments.part else PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](report, Path(folder), quick=arguments.quick)
    report.write(arguments.output)


if __name__ == "__main__":
    main()
