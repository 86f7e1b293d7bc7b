"""The cost of a student's step from the cache relative to cross-entropy alone, and the cost of the loop itself.

    python benchmarks/step.py

Writes benchmarks/results/DATE-step.md and .json; takes about five minutes on 2 CPU cores. The sides take turns, step by
step, on the same batches of one loader; both students begin with the same weights. Figures are medians of the turns'
ratios.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from _crops import NUM_CLASSES, crop_dataset
from _result import Report, Spread, parser, ratio, take_turns
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.tasks import TrainingTask
from kdkit.training.config import TrainConfig
from kdkit.training.logger import RunLogger
from kdkit.training.train import train
from kdkit.types import Batch, Normalization

LIMIT, LOOP_LIMIT = 1.03, 1.02


@dataclass(frozen=True)
class Setting:
    """A student and what it sees."""

    model: str
    size: int
    """Pixels."""
    batch: int
    """Images a step."""


SETTINGS = (Setting("resnet18", 64, 32), Setting("vit_tiny_patch16_224", 96, 32))


def create_student(setting: Setting) -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(0)
    fixed = {"img_size": setting.size} if setting.model.startswith("vit") else {}
    return timm.create_model(setting.model, num_classes=NUM_CLASSES, **fixed)


def create_loader(dataset: ReplayedDataset, student: nn.Module, batch: int) -> ReplayLoader:
    """Shuffled, in this process."""
    sampler = EpochSampler(range(len(dataset)), batch, drop_last=True)
    return ReplayLoader(dataset, sampler, Normalization.of(student))


def create_cache(dataset: ReplayedDataset, folder: Path) -> CachedTeacher:
    """A cache of the default codec; its teacher does not affect the time of reading."""
    torch.manual_seed(1)
    teacher = kdkit.create_teacher(timm.create_model("test_resnet", num_classes=NUM_CLASSES))
    path = folder / f"{dataset.recipe.size}.h5"
    kdkit.build_cache(teacher, dataset, path, BuildConfig(num_workers=0))
    return kdkit.open_cache(path, dataset)


def step_of(task: TrainingTask, batches: list[Batch], cache: CachedTeacher | None) -> Callable[[], None]:
    """One training step after the other over `batches`, cyclically."""
    optimizer = create_optimizer_v2(task.trainable_module, "adamw", lr=1e-3, weight_decay=0.05)
    count = 0

    def step() -> None:
        nonlocal count
        batch = batches[count % len(batches)]
        count += 1
        result = task(batch.input, batch.target, *(() if cache is None else (cache(batch),)))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()

    return step


def compare_steps(setting: Setting, turns: int, folder: Path) -> tuple[Spread, float, float]:
    """Ratio of a step from the cache to one with cross-entropy alone, and both medians in milliseconds."""
    dataset = crop_dataset(setting.batch * 8, setting.size)
    cache = create_cache(dataset, folder)
    student = create_student(setting)
    batches = list(create_loader(dataset, student, setting.batch))
    times = take_turns(
        {
            "cross-entropy": step_of(kdkit.ClassificationTask(student), batches, None),
            "cache": step_of(kdkit.LogitDistillationTask(create_student(setting)), batches, cache),
        },
        turns,
    )
    found = ratio(times["cache"], times["cross-entropy"])
    return found, *(Spread.of(times[side]).median * 1e3 for side in ("cross-entropy", "cache"))


def minimal_loop(student: nn.Module, loader: ReplayLoader) -> None:
    """What one writes by hand: an epoch of cross-entropy with timm's optimiser and schedule, and the mean loss."""
    optimizer = create_optimizer_v2(student, "adamw", lr=1e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=1, min_lr=0.0, step_on_epochs=False, updates_per_epoch=len(loader)
    )
    student.train()
    total = torch.zeros(())
    for number, batch in enumerate(loader):
        loss = F.cross_entropy(student(batch.input), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step_update(number + 1)
        total += loss.detach()
    assert total.isfinite()


def compare_loops(setting: Setting, turns: int, steps: int, folder: Path) -> Spread:
    """Ratio of an epoch in kdkit's loop, which logs every step to a file, to one in a minimal loop."""
    dataset = crop_dataset(setting.batch * steps, setting.size)
    students = {name: create_student(setting) for name in ("kdkit", "by hand")}
    loaders = {name: create_loader(dataset, student, setting.batch) for name, student in students.items()}
    task, logger = kdkit.ClassificationTask(students["kdkit"]), RunLogger(folder / "run")
    config = TrainConfig(epochs=1, batch_size=setting.batch)
    times = take_turns(
        {
            "kdkit": lambda: train(task, loaders["kdkit"], config, logger=logger),
            "by hand": lambda: minimal_loop(students["by hand"], loaders["by hand"]),
        },
        turns,
        warm_up=1,
    )
    return ratio(times["kdkit"], times["by hand"])


def main() -> None:
    """Measures both and writes the page."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    report = Report("step", "A student's step", arguments.quick)
    turns, epochs, steps = (5, 2, 4) if arguments.quick else (60, 12, 16)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for setting in SETTINGS:
            found, alone, cached = compare_steps(setting, turns, Path(name))
            report.figure(f"{setting.model}/cache over cross-entropy", found)
            shown = (f"{setting.model}, {setting.size} px, {setting.batch} images", f"{alone:.1f}", f"{cached:.1f}")
            rows.append((*shown, found, "yes" if found.median <= LIMIT else "no"))
        loop = compare_loops(SETTINGS[0], epochs, steps, Path(name))
    report.text(
        f"A step from the cache relative to the same step with cross-entropy alone; the target is at most {LIMIT}."
    )
    header = ("student", "cross-entropy, ms", "from the cache, ms", "ratio (quartiles)", "within the limit")
    report.table(header, rows)
    report.text(
        f"{NUM_CLASSES:,} classes; lowrank, 96 bytes per row; AdamW; KL and cross-entropy; {turns} turns; one thread.",
        "The batches are loaded before; the cache is read, decoded and compared within the step, and teacher top-1,",
        "agreement and entropy are computed, as in training.",
    )
    report.figure("loop over minimal loop", loop)
    report.text(
        f"kdkit's loop relative to a hand-written minimal loop, {SETTINGS[0].model} at {SETTINGS[0].size} px, epochs",
        f"of {steps} steps, loading included, every step logged: {loop} of its time; the target is at most",
        f"{LOOP_LIMIT}; {epochs} turns.",
    )
    report.write(arguments.output)


if __name__ == "__main__":
    main()
