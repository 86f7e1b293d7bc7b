"""What does a student learn from features in fewer bytes? The same student, from float16, int8 and compact features.

    python benchmarks/feature_students.py        (about 10 minutes on one calm core)

Needs the `test` extra. The teacher is tf_efficientnet_lite0 with ImageNet weights. Its features for replayed crops of
19 photographs, which it sees at 224 pixels, are cached once by build_cache, as float16. The student, timm's
test_efficientnet, sees the same crops at 64 pixels, and learns from the features as each codec decodes them, by
`hint_mse`: the pooled vector, and a map. Codecs are fitted as in a build, to view 0 of the training crops. The error is
|p - f|^2 / |f|^2 on average over rows, p the student's projected feature and f the teacher's own, on three sets that
neither trained nor fitted: new crops of the same left halves of photographs, the right halves of these, and other
photographs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from _photographs import CropSource, create_imagenet_model
from _result import Report, parser
from story import Split, normalised, split, table
from timm.optim import create_optimizer_v2
from torch import Tensor

from kdkit import FeatureDistillationTask, build_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.cache.codecs import create_feature_codec
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.tasks import LossTerm
from kdkit.teachers import create_teacher
from kdkit.teachers.tap import forward_with_taps
from kdkit.types import Normalization, TeacherOutput

VIEWS = 2
STUDENT, RATE, BATCH = "test_efficientnet", 4e-3, 32
TAPS: Mapping[str, str] = {"pooled": "pooled", "stages.4": "stages.3"}  # of the teacher -> of the student
FORMATS: Mapping[str, tuple[str, int]] = {  # what is shown -> codec, and the part of float16's bytes; 0: its own size
    "float16": ("float16", 0),
    "int8": ("int8", 0),
    "compact, a tenth": ("compact", 10),
    "compact, a sixteenth": ("compact", 16),
}
HELD_OUT = ("new_crop", "other_half", "held_out")
COLUMNS: Mapping[str, str] = {
    "bytes": "bytes",
    "lost": "error of the cache",
    "new_crop": "student's error, new crops",
    "other_half": "other halves",
    "held_out": "other photographs",
}


@dataclass(frozen=True)
class Data:
    """Images of the students and the teacher's cache: N crops, V views."""

    images: Tensor  # uint8 [V, N, 3, 64, 64]
    cache: CachedTeacher
    half: Tensor  # index of the half photograph, int64 [N]; even ones are left
    photographs: int

    def features(self, tap: str, rows: Tensor) -> Tensor:
        """The teacher's features of crops [R] in all views, float32 [V, R, ...]."""
        encoded = (self.cache.read_encoded(rows, view, tap) for view in range(VIEWS))
        return torch.stack([self.cache.codecs[tap].decode(payload) for payload in encoded])


def load(crops: int, folder: Path) -> Data:
    """Builds the cache, or opens that in `folder`, and reads the views."""
    source = CropSource(crops)
    dataset = ReplayedDataset(source, ViewRecipe(size=64, teacher_size=224, scale=(0.05, 1.0), num_views=VIEWS))
    config = BuildConfig(streams=tuple(TAPS), feature_codec="float16", batch_size=32)
    path = folder / f"features-{crops}.h5"
    build_cache(create_teacher(create_imagenet_model()), dataset, path, config, show_progress=True)
    images = []
    for view in range(VIEWS):
        sampler = EpochSampler(range(len(dataset)), 256, num_views=VIEWS, shuffle=False)
        sampler.set_epoch(view)
        loader = ReplayLoader(dataset, sampler, Normalization(), num_workers=0)
        images.append(torch.cat([batch.images for batch in loader.pixel_batches()]))
    return Data(torch.stack(images), open_cache(path, dataset), source.half, len(source.names))


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """|x - x^|^2 / |x|^2 of rows [R, ...], float32 [R]."""
    return (found - wanted).flatten(1).square().sum(1) / wanted.flatten(1).square().sum(1)


def create_task(data: Data, tap: str, seed: int) -> FeatureDistillationTask:
    """The same weights for all formats of a tap."""
    torch.manual_seed(seed)
    student = timm.create_model(STUDENT, num_classes=0)
    term = LossTerm("hint_mse", 1.0, student_taps=TAPS[tap], teacher_taps=tap)
    widths = data.cache.feature_widths
    return FeatureDistillationTask(
        student, distill_loss=term, teacher_widths=widths, task_loss_weight=0.0, verbose=False
    )


def train_student(
    data: Data, tap: str, taught: Tensor, training: Tensor, epochs: int, seed: int
) -> FeatureDistillationTask:
    """Trains a student without labels; in epoch e from the features [V, R, ...] of view e mod V."""
    task = create_task(data, tap, seed)
    module = task.trainable_module
    optimizer = create_optimizer_v2(module, "adamw", lr=RATE, weight_decay=0.05)
    steps = epochs * (len(training) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    module.train()
    for epoch in range(epochs):
        order = torch.randperm(len(training))
        for places in order[: len(order) // BATCH * BATCH].split(BATCH):
            image = normalised(data.images[epoch % VIEWS, training[places]])
            output = TeacherOutput(features={tap: taught[epoch % VIEWS, places]})
            loss = task(image, torch.full((BATCH,), -1), output)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return task


@torch.inference_mode()
def projected(task: FeatureDistillationTask, tap: str, images: Tensor, wanted: Tensor) -> Tensor:
    """The student's feature as `hint_mse` compares it with the teacher's [R, ...]: projected, and on its grid."""
    module = task.trainable_module.eval()
    [comparison] = module.comparisons.values()
    feature = forward_with_taps(module.student, normalised(images), [TAPS[tap]])[1][TAPS[tap]]
    found: Tensor = comparison.loss.projection(feature)
    if found.shape == wanted.shape:
        return found
    return F.interpolate(found, size=wanted.shape[2:], mode="bilinear", align_corners=False)


@torch.inference_mode()
def evaluate(
    data: Data, tap: str, parts: Split, task: FeatureDistillationTask | None, mean: Tensor
) -> dict[str, float]:
    """The mean error on all that is held out; without a task that of the mean training feature [...]."""
    scores = {}
    for name in HELD_OUT:
        errors = []
        for rows in getattr(parts, name).split(128):
            for view, wanted in enumerate(data.features(tap, rows)):
                found = mean[None] if task is None else projected(task, tap, data.images[view, rows], wanted)
                errors.append(relative_error(found, wanted))
        scores[name] = float(torch.cat(errors).mean())
    return scores


def run_seed(data: Data, tap: str, seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Format -> scores, for one split and initialisation, the same for all formats."""
    parts = split(data.half, seed)
    wanted = data.features(tap, parts.training)
    mean = wanted.flatten(0, 1).mean(0)
    results = {CONSTANT: evaluate(data, tap, parts, None, mean)}
    shape, exact = wanted.shape[2:], 2 * wanted[0, 0].numel()
    for name, (codec_name, share) in FORMATS.items():
        size = {"row_bytes": -(-exact // share)} if share else {}
        codec = create_feature_codec(codec_name, shape, **size).suited_to(wanted[0]).fit(wanted[0])
        taught = torch.stack([codec.decode(codec.encode(view)) for view in wanted])
        lost = relative_error(taught.flatten(0, 1), wanted.flatten(0, 1))
        task = train_student(data, tap, taught, parts.training, epochs, seed)
        found = evaluate(data, tap, parts, task, mean)
        results[name] = {"bytes": codec.row_bytes, "lost": float(lost.mean()), **found}
        print(tap, seed, name, codec.name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
    return results


CONSTANT = "constant: the mean training feature"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--keep", type=Path, help="folder in which the teacher's cache is kept and found again")
    made.add_argument("--crops", type=int, default=12, help="crops of each half and view")
    made.add_argument("--epochs", type=int, default=28)
    made.add_argument("--seeds", type=int, default=3)
    args = made.parse_args()
    crops, epochs, seeds = (8, 2, 1) if args.quick else (args.crops, args.epochs, args.seeds)
    torch.set_num_threads(1)
    report = Report("feature_students", "What a student learns from features in fewer bytes", args.quick)
    with tempfile.TemporaryDirectory() as temporary:
        data = load(crops, args.keep or Path(temporary))
        sizes = [len(part) for part in vars(split(data.half, 0)).values()]
        report.text(
            f"""A {STUDENT} of timm, 64 px, is trained by `hint_mse` alone, without labels, for {epochs} epochs from
            features of tf_efficientnet_lite0 (ImageNet weights, 224 px) for {VIEWS} views of crops of the left halves
            of {data.photographs} photographs, without every fourth photograph and one in 8 crops: {sizes[0]} crops in
            the first of {seeds} splits. It is measured on {sizes[1]} new crops of the same halves, {sizes[2]} crops of
            the other halves and {sizes[3]} crops of the other photographs, in {VIEWS} views. Errors are the mean over
            rows of |x - x^|^2 / |x|^2: "of the cache" between decoded and exact training features, else between the
            student's projected feature and the teacher's as float16. Each seed has its own split, initialisation and
            order, the same for all formats; mean over seeds ± half the range."""
        )
        for tap in TAPS:
            runs = [run_seed(data, tap, seed, epochs) for seed in range(seeds)]
            shape = list(data.features(tap, torch.zeros(1, dtype=torch.int64)).shape[2:])
            report.text(f"## {tap}, {shape}")
            report.table(["taught by", *COLUMNS.values()], table(runs, list(runs[0]), COLUMNS))
            differences = {name: differences_of(runs, name) for name in FORMATS if name != "float16"}
            report.text("Difference from the student taught by float16, of each seed, mean ± half the range:")
            report.table(
                ["taught by", *(COLUMNS[part] for part in HELD_OUT)], [[n, *d] for n, d in differences.items()]
            )
            for name in runs[0]:
                report.figure(f"{tap}: {name}", {key: [run[name][key] for run in runs] for key in runs[0][name]})
    report.write(args.output)


def differences_of(runs: list[dict[str, dict[str, float]]], name: str) -> list[str]:
    """By how much a format's student errs more than float16's of the same seed, on each held-out set."""
    found = []
    for part in HELD_OUT:
        more = [run[name][part] - run["float16"][part] for run in runs]
        found.append(f"{np.mean(more):+.4f} ± {(max(more) - min(more)) / 2:.4f}")
    return found


if __name__ == "__main__":
    main()
