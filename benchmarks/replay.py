"""Why a cached output must belong to the exact view: digits, three seeds, three sources of the teacher's outputs.

    python benchmarks/replay.py            (about 3 minutes on 2 calm cores; needs the `demo` extra)

A teacher is trained on the digits under strong augmentation. Students learn from it without labels on augmented images:
from the live teacher, from a cache of the replayed views, and from a cache of one centre view of each image, as in a
cache without replay. Then they are compared with the teacher on new views of held-out images.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from _result import Report, parser
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from kdkit import ClassificationTask, LogitDistillationTask, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.training.config import TrainConfig
from kdkit.training.train import train
from kdkit.types import Batch, Normalization, TeacherOutput, TeacherSource

SIZE, TEACHER, STUDENT = 32, "test_resnet", "test_resnet"
VIEWS = ViewRecipe(
    size=SIZE, scale=(0.35, 1.0), hflip=0.0, interpolation="bilinear", auto_augment="rand-m6-mstd0.5", num_views=8
)
CENTRE = ViewRecipe.evaluation(SIZE, crop_pct=1.0, interpolation="bilinear")
WAYS = ("live teacher", "cache of the replayed views", "cache of the centre view")


@dataclass(frozen=True)
class Data:
    """The digits: N training images and M held-out ones."""

    training: ArraySource
    held_out: ArraySource

    @classmethod
    def load(cls, count: int | None) -> Data:
        data = load_digits()
        images, labels = (data.images * (255 / 16)).round().astype(np.uint8), data.target
        kept, held_out = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
        names = [str(digit) for digit in range(10)]
        return cls(
            *(ArraySource(images[rows], labels[rows], class_names=names) for rows in (kept[:count], held_out[:count]))
        )


class OfTheCentre:
    """Returns the cached output of the centre view for every view of the student."""

    def __init__(self, cache: TeacherSource) -> None:
        self.cache = cache

    def __call__(self, batch: Batch) -> TeacherOutput:
        return self.cache(Batch(batch.input, batch.target, batch.row, view=0))


def loader(dataset: ReplayedDataset, model: nn.Module, seed: int | None, batch_size: int = 64) -> ReplayLoader:
    sampler = EpochSampler(
        range(len(dataset)), batch_size, num_views=dataset.recipe.num_views, shuffle=seed is not None, seed=seed or 0
    )
    return ReplayLoader(dataset, sampler, Normalization.of(model))


def train_teacher(data: Data, epochs: int) -> Teacher:
    torch.manual_seed(0)
    model = timm.create_model(TEACHER, num_classes=10)
    dataset = ReplayedDataset(data.training, VIEWS)
    config = TrainConfig(epochs=epochs, batch_size=64, lr=2e-3, warmup_epochs=1)
    train(ClassificationTask(model), loader(dataset, model, 0), config)
    return create_teacher(model, num_classes=10)


def train_student(source: TeacherSource, data: Data, seed: int, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    student = timm.create_model(STUDENT, num_classes=10)
    task = LogitDistillationTask(student, None, task_loss_weight=0.0, temperature=1.0)
    config = TrainConfig(epochs=epochs, batch_size=64, lr=2e-3, warmup_epochs=1, seed=seed)
    train(task, loader(ReplayedDataset(data.training, VIEWS), student, seed), config, teacher_source=source)
    return student.eval()


@torch.no_grad()
def top1(model: nn.Module, source: ArraySource, recipe: ViewRecipe) -> float:
    """Top-1 accuracy on view 0 of each image, percent."""
    right = [
        (model(batch.input).argmax(1) == batch.target) for batch in loader(ReplayedDataset(source, recipe), model, None)
    ]
    return 100 * float(torch.cat(right).float().mean())


@torch.no_grad()
def divergence(student: nn.Module, teacher: Teacher, source: ArraySource) -> float:
    """Mean KL(teacher || student), nats, on views that neither model was trained on."""
    dataset = ReplayedDataset(source, VIEWS)
    live, sums = teacher.for_input(Normalization.of(student)), []
    for batch in loader(dataset, student, None):
        logits = live(batch).logits
        assert logits is not None
        log_p, log_q = logits.log_softmax(1), student(batch.input).log_softmax(1)
        sums.append((log_p.exp() * (log_p - log_q)).sum(1))
    return float(torch.cat(sums).mean())


def mean_and_spread(values: list[float], digits: int) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def main() -> None:
    options = parser(__doc__).parse_args()
    seeds, epochs, teacher_epochs, count = (1, 2, 2, 128) if options.quick else (3, 8, 10, None)
    torch.set_num_threads(1)
    report = Report("replay", "Replayed views compared with a reused centre view", quick=options.quick)
    data = Data.load(count)
    teacher = train_teacher(data, teacher_epochs)
    with tempfile.TemporaryDirectory() as name:
        caches = {}
        for kind, recipe in (("replayed", VIEWS), ("centre", CENTRE)):
            dataset = ReplayedDataset(data.training, recipe)
            build_cache(teacher, dataset, Path(name) / f"{kind}.h5", BuildConfig(codec="float32", num_workers=0))
            caches[kind] = open_cache(Path(name) / f"{kind}.h5", dataset)
        sources: dict[str, Callable[[], TeacherSource]] = {
            WAYS[0]: lambda: teacher,
            WAYS[1]: lambda: caches["replayed"],
            WAYS[2]: lambda: OfTheCentre(caches["centre"]),
        }
        measured: dict[str, dict[str, list[float]]] = {way: {"top1": [], "augmented": [], "kl": []} for way in WAYS}
        for seed in range(seeds):
            for way in WAYS:
                student = train_student(sources[way](), data, seed, epochs)
                measured[way]["top1"].append(top1(student, data.held_out, CENTRE))
                measured[way]["augmented"].append(top1(student, data.held_out, VIEWS))
                measured[way]["kl"].append(divergence(student, teacher, data.held_out))
    report.figure("measured", measured)
    model = teacher.model
    accuracies = [top1(model, data.held_out, recipe) for recipe in (CENTRE, VIEWS)]
    report.figure("teacher", accuracies)
    report.text(
        f"""{TEACHER} as teacher of {STUDENT}, {epochs} epochs over {len(data.training)} images without labels, 8 views
        each; KL at T = 1; {len(data.held_out)} held-out images. The teacher: top-1 {accuracies[0]:.1f} % on them,
        {accuracies[1]:.1f} % on augmented views of them. Mean and sample standard deviation of {seeds} seed(s)."""
    )
    rows = [
        [way, mean_and_spread(m["top1"], 2), mean_and_spread(m["augmented"], 2), mean_and_spread(m["kl"], 3)]
        for way, m in measured.items()
    ]
    report.table(["trained from", "top-1, %", "top-1 on augmented views, %", "KL(teacher \\|\\| student), nats"], rows)
    report.write(options.output)


if __name__ == "__main__":
    main()
