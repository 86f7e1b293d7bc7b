"""The demonstration: a teacher, its cache, and students trained with and without it, on scikit-learn's digits.

The teacher is trained on all 1,347 training labels. Small students get 30 of the labels, and are trained from the
labels alone, with the live teacher, or from its cache, on one schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import timm
import torch
from torch import nn

from kdkit.building.build import build_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import open_cache
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.demo.config import DemoConfig
from kdkit.demo.digits import NUM_CLASSES, Digits, load_digits
from kdkit.demo.report import DemoReport, draw_students
from kdkit.recipe import ViewRecipe
from kdkit.runtime.output import prepare_output
from kdkit.runtime.progress import Display, progress
from kdkit.tasks import ClassificationTask, LogitDistillationTask, TrainingTask
from kdkit.teachers import Teacher, create_teacher
from kdkit.training.config import TrainConfig
from kdkit.training.logger import FILES, RunLogger
from kdkit.training.report import TrainReport
from kdkit.training.train import train
from kdkit.types import Normalization, TeacherSource

SIZE = 32
TEACHER = "resnet10t"
STUDENT = "test_resnet"
TEMPERATURE = 2.0
_TEACHER_TRAINING = TrainConfig(batch_size=32, lr=1e-3, weight_decay=0.05, warmup_epochs=1)
_STUDENT_TRAINING = TrainConfig(batch_size=32, lr=3e-3, weight_decay=0.05, warmup_epochs=1)
_FILES = (*FILES, "teacher.h5", "teacher.h5.parts", "students.png")
WAYS = ("labels alone", "live teacher", "cached teacher")


def demo(config: DemoConfig | None = None, *, show_progress: bool = False) -> DemoReport:
    """Runs the demonstration and writes the cache, metrics.jsonl, summary.csv and students.png.

    Args:
        config: output folder, seeds and size of the work.
        show_progress: whether progress is shown on standard error.

    Raises:
        MissingDependencyError: scikit-learn or matplotlib is not installed.
        OutputExistsError: the output folder is not empty.
    """
    config = config or DemoConfig()
    start = time.monotonic()
    digits = load_digits()
    output = prepare_output(config.output, _FILES, overwrite=config.overwrite)
    run = _Demo(config, digits, RunLogger(output), show_progress)
    teacher, teacher_top1 = run.train_teacher()
    build = build_cache(
        teacher,
        run.unlabelled,
        output / "teacher.h5",
        BuildConfig(codec="float32", num_workers=config.num_workers),  # exact, and small with ten classes
        show_progress=show_progress,
    )
    students = run.train_students(teacher, open_cache(build.path, run.unlabelled))
    report = DemoReport(teacher_top1, build, len(digits.labelled), students, time.monotonic() - start, output)
    draw_students(report, output / "students.png")
    return report


class _Demo:
    """The datasets of the demonstration, and the trainings of its teacher and students."""

    def __init__(self, config: DemoConfig, digits: Digits, logger: RunLogger, show_progress: bool) -> None:
        self.config = config
        self.logger = logger
        self.show_progress = show_progress
        recipe = ViewRecipe(size=SIZE, scale=(0.8, 1.0), hflip=0.0, num_views=config.num_views)
        copies = len(digits.train) // len(digits.labelled)
        self.labelled = ReplayedDataset(digits.source(digits.train), recipe)
        self.unlabelled = ReplayedDataset(digits.source(digits.train, visible=digits.labelled), recipe)
        self.few = ReplayedDataset(digits.source(digits.labelled, copies=copies), recipe)
        self.held_out = ReplayedDataset(digits.source(digits.held_out), ViewRecipe.evaluation(SIZE, crop_pct=1.0))

    def train_teacher(self) -> tuple[Teacher, float]:
        """Trains the teacher on every label; returns it and its held-out top-1 in percent."""
        torch.manual_seed(0)
        model = timm.create_model(TEACHER, num_classes=NUM_CLASSES)
        config = replace(_TEACHER_TRAINING, epochs=self.config.teacher_epochs)
        steps = config.epochs * len(self.labelled)
        with progress(f"training the teacher, {TEACHER}", steps, "images", enabled=self.show_progress) as display:
            task = ClassificationTask(model)
            report = self._train(task, self.labelled, config, "teacher", 0, display, num_workers=0)
        return create_teacher(model, num_classes=NUM_CLASSES), report.top1 or 0.0

    def train_students(self, teacher: Teacher, cache: TeacherSource) -> dict[str, list[TrainReport]]:
        """Trains one student for each way and seed, on one schedule; the ways alternate."""
        tasks: dict[str, Callable[[nn.Module], TrainingTask]] = {
            "labels alone": ClassificationTask,
            "live teacher": lambda student: _distillation(student, teacher),
            "cached teacher": lambda student: _distillation(student, None),
        }
        reports: dict[str, list[TrainReport]] = {way: [] for way in WAYS}
        for seed in range(self.config.seeds):
            for way in WAYS:
                dataset = self.few if way == "labels alone" else self.unlabelled
                config = replace(_STUDENT_TRAINING, epochs=self.config.epochs, seed=seed)
                torch.manual_seed(seed)
                task = tasks[way](timm.create_model(STUDENT, num_classes=NUM_CLASSES))
                label = f"student {seed + 1} of {self.config.seeds}, {way}"
                with progress(label, config.epochs * len(dataset), "images", enabled=self.show_progress) as display:
                    source = cache if way == "cached teacher" else None
                    with _cores_for_workers(self.config.num_workers):
                        reports[way].append(
                            self._train(task, dataset, config, way, seed, display, source, self.config.num_workers)
                        )
        return reports

    def _train(
        self,
        task: TrainingTask,
        dataset: ReplayedDataset,
        config: TrainConfig,
        way: str,
        seed: int,
        display: Display,
        source: TeacherSource | None = None,
        num_workers: int = 0,
    ) -> TrainReport:
        sampler = EpochSampler(
            range(len(dataset)), config.batch_size, num_views=dataset.recipe.num_views, seed=seed, drop_last=True
        )
        validation = EpochSampler(range(len(self.held_out)), 150, shuffle=False)
        normalization = Normalization.of(task.trainable_module)
        return train(
            task,
            ReplayLoader(dataset, sampler, normalization, num_workers=num_workers),
            config,
            teacher_source=source,
            validation=ReplayLoader(self.held_out, validation, normalization),
            logger=self.logger.with_context(way=way, seed=seed),
            display=display,
        )


@contextmanager
def _cores_for_workers(num_workers: int) -> Iterator[None]:
    """Leaves a core to each loader worker: small models lose more by sharing a core than by having one less."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _distillation(student: nn.Module, teacher: Teacher | None) -> TrainingTask:
    return LogitDistillationTask(student, teacher, temperature=TEMPERATURE)
