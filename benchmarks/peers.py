"""The cost of a step compared with timm.task: cross-entropy alone, from a cache, with live teachers of growing size.

    python benchmarks/peers.py [--quick]       (about 4 minutes on 2 CPU cores)

The student, its optimiser and the batches are the same on all sides, which take turns step by step. Images are in
memory, so that no loader hides or adds anything; a step from the cache includes reading and decoding the rows. Weights
are random: they do not change the time. timm.task has no cache; its side is the live one.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import timm.optim
import timm.task
import torch
from _result import Report, parser, ratio, take_turns
from torch import Tensor, nn

from kdkit import ClassificationTask, LogitDistillationTask, build_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.teachers import create_teacher
from kdkit.types import Batch, Normalization

STUDENT = "mobilenetv3_small_100"
TEACHERS = ("mobilenetv3_large_100", "resnet18", "resnet50", "resnet152")
NUM_CLASSES, SIZE, BATCH, ROWS = 1000, 128, 32, 512
CROSS_ENTROPY, CACHED = "cross-entropy alone", "kdkit, from the cache"
Step = Callable[[], object]


def cached_batches(folder: Path) -> tuple[CachedTeacher, list[Batch]]:
    """A lowrank cache of 96 bytes per row, opened for its dataset, and batches of that in memory."""
    images = np.random.default_rng(0).integers(0, 256, (ROWS, SIZE, SIZE, 3), dtype=np.uint8)
    targets = np.random.default_rng(1).integers(0, NUM_CLASSES, ROWS)
    dataset = ReplayedDataset(ArraySource(images, targets), ViewRecipe(size=SIZE))
    teacher = create_teacher(timm.create_model("test_resnet", num_classes=NUM_CLASSES))
    config = BuildConfig(codec="lowrank", codec_options={"row_bytes": 96}, num_workers=0)
    build_cache(teacher, dataset, folder / "teacher.h5", config)
    loader = ReplayLoader(dataset, EpochSampler(range(ROWS), BATCH), Normalization())
    return open_cache(folder / "teacher.h5", dataset), list(loader)


def optimised(task: nn.Module, batches: Sequence[Batch], forward: Callable[[Batch], dict[str, Tensor]]) -> Step:
    """One training step on the next batch, cyclically."""
    optimizer = timm.optim.create_optimizer_v2(task.trainable_module, "sgd", lr=1e-3)
    task.train()
    index = 0

    def step() -> None:
        nonlocal index
        result = forward(batches[index % len(batches)])
        index += 1
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()

    return step


def student() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(STUDENT, num_classes=NUM_CLASSES)
    return model


def steps(cache: CachedTeacher, batches: Sequence[Batch], teacher: nn.Module) -> dict[str, Step]:
    plain = ClassificationTask(student(), verbose=False)
    cached = LogitDistillationTask(student(), verbose=False)
    live = LogitDistillationTask(student(), create_teacher(teacher), verbose=False)
    theirs = timm.task.LogitDistillationTask(
        student(), teacher, nn.CrossEntropyLoss(), task_loss_weight=1.0, distill_loss_weight=1.0, verbose=False
    )
    return {
        CROSS_ENTROPY: optimised(plain, batches, lambda batch: plain(batch.input, batch.target)),
        CACHED: optimised(cached, batches, lambda batch: cached(batch.input, batch.target, cache(batch))),
        "kdkit, live": optimised(live, batches, lambda batch: live(batch.input, batch.target)),
        "timm.task, live": optimised(theirs, batches, lambda batch: theirs(batch.input, batch.target)),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--teachers", nargs="+", default=TEACHERS, help="timm names")
    args = made.parse_args()
    teachers, turns = (args.teachers[:1], 3) if args.quick else (args.teachers, 15)
    report = Report("peers", "A step compared with timm.task", args.quick)
    report.text(
        f"""Student {STUDENT}, {BATCH} images of {SIZE} px per step, {NUM_CLASSES:,} classes, SGD; {turns} turns. Ratios
        are to the step with cross-entropy alone of the same turn: median (quartiles)."""
    )
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache, batches = cached_batches(Path(folder))
        for name in teachers:
            teacher = timm.create_model(name, num_classes=NUM_CLASSES).eval()
            millions = sum(p.numel() for p in teacher.parameters()) / 1e6
            times = take_turns(steps(cache, batches, teacher), turns)
            figures = {side: ratio(times[side], times[CROSS_ENTROPY]) for side in list(times)[1:]}
            alone = 1e3 * statistics.median(times[CROSS_ENTROPY])
            report.figure(
                name,
                {"millions": millions, "cross-entropy, ms": alone}
                | {side: spread.median for side, spread in figures.items()},
            )
            rows.append([name, f"{millions:.1f}", f"{alone:.0f}", *figures.values()])
            print(*rows[-1], flush=True)
    header = ["teacher", "million weights", f"{CROSS_ENTROPY}, ms", "from the cache", "kdkit, live", "timm.task, live"]
    report.table(header, rows)
    report.write(args.output)


if __name__ == "__main__":
    main()
