"""Throughput of a build relative to a bare loop that loads images, runs the teacher and discards its outputs.

    python benchmarks/build.py

Writes benchmarks/results/DATE-build.md and .json; takes about 25 minutes on 2 CPU cores. A pass is timed from the
first to the last run of the teacher, because a build of a million images starts and ends only once; the time of
start and end is reported separately. A turn runs the sides forward and then in reverse, so that drift of the
machine's speed affects both sides equally; figures are medians of the turns' ratios. Each pair is measured twice:
with images loaded in the teacher's process, which leaves a core to the encoder, and by a separate process, which
leaves no core on a machine of 2: the encoder then takes its time from the teacher. The sample of teacher outputs
before a build (up to 16,896 images, for fitting and measuring codecs) is computed before the timed part. For
ImageNet's 1.28 million images it is 1.3 % of a single view, and it is computed once for any number of views.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from _crops import NUM_CLASSES, crop_dataset
from _result import Report, Spread, parser, ratio

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.building.plan import BuildPlan
from kdkit.data import RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.teachers import Teacher

LIMIT = 0.95
TEACHERS = (("resnet50", 128), ("tf_efficientnet_lite0", 224))
CODECS = ("lowrank", "int8")
WORKERS = (0, 1)
"""Processes that load images."""
BATCH = 32


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass over the images."""

    running: float
    """From the first to the last run of the teacher: all batches but one."""
    all: float
    """From start to end."""


class Clock:
    """Records when the teacher's model runs."""

    def __init__(self, teacher: Teacher) -> None:
        self.runs: list[float] = []
        teacher.model.register_forward_pre_hook(lambda *_: self.runs.append(time.perf_counter()))

    def time(self, run: Callable[[], None], batches: int) -> Pass:
        """Times one pass, in which the teacher runs on `batches` batches."""
        self.runs.clear()
        begun = time.perf_counter()
        run()
        ended = time.perf_counter()
        assert len(self.runs) == batches
        return Pass(self.runs[-1] - self.runs[0], ended - begun)


def bare_loop(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> None:
    """Loads images, runs the teacher, discards its outputs."""
    sampler = RangeSampler([(0, 0, len(dataset))], config.batch_size)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, num_workers=config.num_workers)
    for pixels in loader.pixel_batches():
        assert teacher(loader.to_batch(pixels)).logits is not None


def planned_build(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, folder: Path) -> Callable[[], None]:
    """A build that starts from the same plan each time: it runs the teacher, encodes, seals and packs every row."""
    kdkit.CacheWriter.create(folder / "plan.h5", BuildPlan(teacher, dataset.for_teacher(), config)).close()
    plan, path = folder / "plan.h5.parts", folder / "teacher.h5"

    def build() -> None:
        path.unlink(missing_ok=True)
        shutil.copytree(plan, folder / "teacher.h5.parts")
        report = kdkit.build_cache(teacher, dataset, path, config)
        assert report.images_built == len(dataset)

    return build


def there_and_back(sides: Mapping[str, Callable[[], Pass]], turns: int) -> dict[str, list[list[Pass]]]:
    """Two passes of each side in each turn."""
    for side in sides.values():
        side()  # warms up
    passes: dict[str, list[list[Pass]]] = {name: [] for name in sides}
    for _ in range(turns):
        turn: dict[str, list[Pass]] = {name: [] for name in sides}
        for name in (*sides, *reversed(sides)):
            turn[name].append(sides[name]())
        for name, found in turn.items():
            passes[name].append(found)
    return passes


@dataclass(frozen=True)
class Compared:
    """A build compared with a bare loop."""

    throughput: Spread
    """Images per second while the teacher runs, relative to the bare loop."""
    bare: float
    """Images per second of the bare loop."""
    ends: float
    """Seconds of a build before the teacher's first run and after its last output."""


def compare(name: str, size: int, codec: str, turns: int, count: int, workers: int) -> Compared:
    """Measures one teacher with one codec."""
    dataset = crop_dataset(count, size)
    torch.manual_seed(0)
    teacher = kdkit.create_teacher(timm.create_model(name, num_classes=NUM_CLASSES))
    config = BuildConfig(codec=codec, batch_size=BATCH, num_workers=workers)
    clock, batches = Clock(teacher), count // BATCH
    with tempfile.TemporaryDirectory() as folder:
        build = planned_build(teacher, dataset, config, Path(folder))
        sides = {
            "bare loop": lambda: clock.time(lambda: bare_loop(teacher, dataset, config), batches),
            "build": lambda: clock.time(build, batches),
        }
        passes = there_and_back(sides, turns)
    running = {side: [sum(one.running for one in turn) for turn in found] for side, found in passes.items()}
    ends = [one.all - one.running * batches / (batches - 1) for turn in passes["build"] for one in turn]
    bare = 2 * (count - BATCH) / statistics.median(running["bare loop"])
    return Compared(ratio(running["bare loop"], running["build"]), bare, statistics.median(ends))


def main() -> None:
    """Measures each teacher with each codec and writes the page."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    report = Report("build", "Building a cache", arguments.quick)
    turns, count = (1, 2 * BATCH) if arguments.quick else (8, 3 * BATCH)
    rows = []
    for (name, size), codec, workers in itertools.product(TEACHERS, CODECS, WORKERS):
        found = compare(name, size, codec, turns, count, workers)
        shown = report.figure(f"{name}/{codec}/{workers} workers/build over bare loop", found.throughput)
        ends = report.figure(f"{name}/{codec}/{workers} workers/start and end, s", found.ends)
        print(f"{name}, {codec}, {workers} workers: {shown}, start and end {ends:.2f} s", flush=True)
        verdict = "yes" if found.throughput.median >= LIMIT else "no"
        rows.append((f"{name}, {size} px", codec, workers, f"{found.bare:.1f}", shown, f"{ends:.2f}", verdict))
    report.text(f"Images per second of a build relative to a bare loop; the target is at least {LIMIT}.")
    header = (
        "teacher",
        "codec",
        "workers",
        "bare loop, images/s",
        "build / bare loop (quartiles)",
        "start and end of a build, s",
        "within the limit",
    )
    report.table(header, rows)
    report.text(
        f"{count} images of {NUM_CLASSES:,} classes in batches of {BATCH}, one thread each, {turns} turns of two",
        "passes per side. The teachers' weights are random, because their time does not depend on them. The smaller",
        "the teacher, the larger the share of encoding. It runs in parallel with the teacher, on a core that a machine",
        "of 2 has only without a worker.",
    )
    report.write(arguments.output)


if __name__ == "__main__":
    main()
