"""Throughput of a build beside a bare loop that loads, asks the teacher and throws the answer away.

    python benchmarks/build.py

Writes benchmarks/results/DATE-build.md and .json; takes about 25 minutes on 2 CPU cores. A pass is timed from the
moment the teacher is first asked to the moment it is last asked: a build of a million images begins and ends once, and
what that takes here is told by itself. A turn goes through the sides there and back, so that a machine whose pace
drifts disturbs both alike; figures are medians of the turns' ratios. Each pair is measured twice: with images loaded
where the teacher runs, which leaves a core to the encoder, and by a process of their own, which on 2 cores leaves
none: there the encoder takes its time from the teacher. The look at the teacher before a build (up to 16,896 images,
to which codecs are fitted and on which they are measured) is made before and does not count: of ImageNet's 1.28
million images it is 1.3 % of a single view, and it is made once however many views there are.
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

    asking: float
    """From the moment the teacher is first asked to that at which it is last asked: all batches but one."""
    all: float
    """From beginning to end."""


class Clock:
    """Notes when the teacher's model is run."""

    def __init__(self, teacher: Teacher) -> None:
        self.asked: list[float] = []
        teacher.model.register_forward_pre_hook(lambda *_: self.asked.append(time.perf_counter()))

    def time(self, run: Callable[[], None], batches: int) -> Pass:
        """One pass, in which the teacher is asked about so many batches."""
        self.asked.clear()
        begun = time.perf_counter()
        run()
        ended = time.perf_counter()
        assert len(self.asked) == batches
        return Pass(self.asked[-1] - self.asked[0], ended - begun)


def bare_loop(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> None:
    """Loads, asks, discards."""
    sampler = RangeSampler([(0, 0, len(dataset))], config.batch_size)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, num_workers=config.num_workers)
    for pixels in loader.pixel_batches():
        assert teacher(loader.to_batch(pixels)).logits is not None


def planned_build(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, folder: Path) -> Callable[[], None]:
    """A build that goes on from its plan, each time anew: asks, encodes, seals and packs every row."""
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
    """A build beside a bare loop."""

    throughput: Spread
    """Images a second while the teacher is asked, over those of the bare loop."""
    bare: float
    """Images a second of the bare loop."""
    ends: float
    """Seconds that a build takes before it first asks and after the last answer."""


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
    asking = {side: [sum(one.asking for one in turn) for turn in found] for side, found in passes.items()}
    ends = [one.all - one.asking * batches / (batches - 1) for turn in passes["build"] for one in turn]
    bare = 2 * (count - BATCH) / statistics.median(asking["bare loop"])
    return Compared(ratio(asking["bare loop"], asking["build"]), bare, statistics.median(ends))


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
    report.text(f"Images a second of a build over those of a bare loop; at least {LIMIT} is wanted.")
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
        "passes a side. The teachers' weights are random: their time does not depend on them. The smaller the teacher,",
        "the more encoding weighs; it goes on beside the teacher, on a core that a machine of 2 has while no worker",
        "takes it.",
    )
    report.write(arguments.output)


if __name__ == "__main__":
    main()
