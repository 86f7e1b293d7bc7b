"""On a CUDA machine, at ImageNet's shapes: a student's step, a build, and decoding.

    python benchmarks/gpu.py

Needs a GPU of 40 GB or more; writes benchmarks/results/DATE-gpu.md and .json, and nothing without CUDA. A
ViT-L is the teacher of a ResNet-50 in bfloat16, channels last. Measured are steps live, from the cache and with
cross-entropy alone, in turns on the same batches; running the teacher with encoding relative to running it alone, on
pixels that are on the device already, so that no loader interferes; and the time to decode a batch.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from _crops import NUM_CLASSES, crop_dataset
from _result import Report, Spread, parser, ratio, take_turns
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.cache.codecs import Codec, create_codec
from kdkit.data import EpochSampler, ReplayLoader
from kdkit.tasks import TrainingTask
from kdkit.teachers import Teacher
from kdkit.types import Batch, Normalization

TEACHER, STUDENT, SIZE, BATCH = "vit_large_patch16_224", "resnet50", 224, 256
DEVICE, DTYPE, LAYOUT = "cuda", torch.bfloat16, torch.channels_last
CODECS = ("lowrank", "topk", "int8", "float16")


def create_student() -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(0)
    return timm.create_model(STUDENT, num_classes=NUM_CLASSES).to(DEVICE, memory_format=LAYOUT)


def step_of(task: TrainingTask, batches: list[Batch], cache: CachedTeacher | None) -> Callable[[], None]:
    """One training step after the other, each waited for."""
    optimizer = create_optimizer_v2(task.trainable_module, "sgd", lr=0.01, momentum=0.9)
    count = 0

    def step() -> None:
        nonlocal count
        batch = batches[count % len(batches)]
        count += 1
        with torch.autocast(DEVICE, DTYPE):
            result = task(batch.input, batch.target, *(() if cache is None else (cache(batch),)))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        torch.cuda.synchronize()

    return step


def compare_steps(report: Report, teacher: Teacher, folder: Path, turns: int) -> None:
    """Live, from the cache, and cross-entropy alone."""
    dataset = crop_dataset(BATCH * 4, SIZE)
    path = folder / "teacher.h5"
    kdkit.build_cache(teacher, dataset, path, BuildConfig(num_workers=8), device=DEVICE)
    cache = kdkit.open_cache(path, dataset)
    student = create_student()
    sampler = EpochSampler(range(len(dataset)), BATCH)
    loader = ReplayLoader(dataset, sampler, Normalization.of(student), device=DEVICE, num_workers=8)
    batches = [Batch(b.input.contiguous(memory_format=LAYOUT), b.target, b.row, b.view) for b in loader]
    tasks: dict[str, tuple[TrainingTask, CachedTeacher | None]] = {
        "cross-entropy": (kdkit.ClassificationTask(student, device=DEVICE), None),
        "cache": (kdkit.LogitDistillationTask(create_student(), device=DEVICE), cache),
        "live teacher": (kdkit.LogitDistillationTask(create_student(), teacher, device=DEVICE), None),
    }
    sides = {name: step_of(task, batches, source) for name, (task, source) in tasks.items()}
    times = take_turns(sides, turns, warm_up=10)
    rows = []
    for name, seconds in times.items():
        found = report.figure(f"{name} over cross-entropy", ratio(seconds, times["cross-entropy"]))
        rows.append((name, f"{Spread.of(seconds).median * 1e3:.1f}", found))
    report.text(f"A step of {STUDENT} under {TEACHER}, {BATCH} images of {SIZE} px, {turns} turns:")
    report.table(("side", "ms", "over cross-entropy (quartiles)"), rows)


def run_teacher(teacher: Teacher, batch: Batch, codec: Codec | None = None) -> None:
    """Runs the teacher and synchronises; with a codec, encodes and copies the rows to the CPU."""
    logits = teacher(batch).logits
    assert logits is not None
    if codec is not None:
        codec.encode(logits).cpu()
    torch.cuda.synchronize()


def decode(codec: Codec, payload: Tensor) -> None:
    """Decodes and synchronises."""
    codec.decode(payload)
    torch.cuda.synchronize()


def compare_builds(report: Report, teacher: Teacher, turns: int) -> None:
    """Running with encoding relative to running alone; pixels on the device."""
    batch = Batch(torch.randn(BATCH, 3, SIZE, SIZE, device=DEVICE), torch.zeros(BATCH, device=DEVICE).long())
    logits = torch.randn(4096, NUM_CLASSES) * 2
    rows = []
    for name in CODECS:
        codec = create_codec(name, NUM_CLASSES)
        codec = codec.fit(logits) if codec.needs_fit else codec
        payload = codec.encode(logits[:BATCH]).to(DEVICE)
        times = take_turns(
            {"run": partial(run_teacher, teacher, batch), "encode": partial(run_teacher, teacher, batch, codec)}, turns
        )
        times |= take_turns({"decode": partial(decode, codec, payload)}, turns, warm_up=10)
        found = report.figure(f"{name}/run and encode over run", ratio(times["run"], times["encode"]))
        median = {side: Spread.of(seconds).median for side, seconds in times.items()}
        rows.append((name, f"{BATCH / median['run']:,.0f}", found, f"{median['decode'] * 1e3:.3f}"))
    report.text(
        "Running and encoding in sequence, relative to running alone (a build overlaps them and is no slower), and",
        f"the time to decode {BATCH} rows of {NUM_CLASSES:,} classes:",
    )
    report.table(("codec", "teacher, images/s", "throughput with encoding (quartiles)", "decode, ms"), rows)


def main() -> None:
    """Measures if CUDA is available."""
    arguments = parser(__doc__).parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs CUDA, and torch sees none here: nothing was measured or written")
    turns = 5 if arguments.quick else 100
    report = Report("gpu", "On a GPU", arguments.quick)
    torch.manual_seed(1)
    teacher = kdkit.create_teacher(timm.create_model(TEACHER, num_classes=NUM_CLASSES), dtype=DTYPE, device=DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        compare_steps(report, teacher, Path(folder), turns)
    compare_builds(report, teacher, turns)
    report.write(arguments.output)


if __name__ == "__main__":
    main()
