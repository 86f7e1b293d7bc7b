"""Throughput of a build beside a bare loop that loads, asks the teacher and throws the answer away.

    python benchmarks/build.py

Writes benchmarks/results/DATE-build.md and .json; takes about half an hour on 2 CPU cores. The sides take
many short turns over the same images; figures are medians of the turns' ratios. Each pair is measured twice: with
images loaded where the teacher runs, which leaves a core to the encoder, and by a process of their own, which on 2
cores leaves none: there the encoder takes its time from the teacher. The look at the teacher before a build (up to
16,896 images, to which codecs are fitted and on which they are measured) is made before and does not count: of
ImageNet's 1.28 million images it is 1.3 % of a single view, and it is made once however many views there are.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from _crops import NUM_CLASSES, crop_dataset
from _result import Report, Spread, parser, ratio, take_turns

import kdkit
from kdkit.cache.parts import Parts, parts_folder
from kdkit.config import BuildConfig
from kdkit.data import RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.engine.plan import plan_cache
from kdkit.teachers import Teacher

LIMIT = 0.95
TEACHERS = (("resnet50", 128), ("tf_efficientnet_lite0", 224))
CODECS = ("lowrank", "int8")
WORKERS = (0, 1)
"""Processes that load images."""


def bare_loop(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> None:
    """Loads, asks, discards."""
    sampler = RangeSampler([(0, 0, len(dataset))], config.batch_size)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, num_workers=config.num_workers)
    for pixels in loader.pixel_batches():
        assert teacher(loader.to_batch(pixels)).logits is not None


def planned_build(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, folder: Path) -> Callable[[], None]:
    """A build that goes on from its plan, each time anew: asks, encodes, seals and packs every row."""
    plan = Parts.create(folder / "plan.parts", *plan_cache(teacher, dataset, config, "cpu")).folder
    path = folder / "teacher.h5"

    def build() -> None:
        path.unlink(missing_ok=True)
        shutil.copytree(plan, parts_folder(path))
        report = kdkit.build_cache(teacher, dataset, path, config)
        assert report.images_built == len(dataset)

    return build


def compare(name: str, size: int, codec: str, turns: int, count: int, workers: int) -> tuple[Spread, float]:
    """Throughput of the build over that of the bare loop, and the latter in images a second."""
    dataset = crop_dataset(count, size)
    torch.manual_seed(0)
    teacher = kdkit.create_teacher(timm.create_model(name, num_classes=NUM_CLASSES))
    config = BuildConfig(codec=codec, batch_size=32, num_workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare loop": lambda: bare_loop(teacher, dataset, config),
            "build": planned_build(teacher, dataset, config, Path(folder)),
        }
        times = take_turns(sides, turns, warm_up=1)
    return ratio(times["bare loop"], times["build"]), count / Spread.of(times["bare loop"]).median


def main() -> None:
    """Measures each teacher with each codec and writes the page."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    report = Report("build", "Building a cache", arguments.quick)
    turns, count = (2, 32) if arguments.quick else (24, 64)
    rows = []
    for (name, size), codec, workers in itertools.product(TEACHERS, CODECS, WORKERS):
        found, speed = compare(name, size, codec, turns, count, workers)
        report.figure(f"{name}/{codec}/{workers} workers/build over bare loop", found)
        print(f"{name}, {codec}, {workers} workers: {found}", flush=True)
        verdict = "yes" if found.median >= LIMIT else "no"
        rows.append((f"{name}, {size} px", codec, workers, f"{speed:.1f}", found, verdict))
    report.text(f"Images a second of a build over those of a bare loop; at least {LIMIT} is wanted.")
    header = ("teacher", "codec", "workers", "bare loop, images/s", "build / bare loop (quartiles)", "within the limit")
    report.table(header, rows)
    report.text(
        f"{count} images of {NUM_CLASSES:,} classes in batches of 32, one thread each, {turns} turns. The teachers'",
        "weights are random: their time does not depend on them. The smaller the teacher, the more encoding weighs; it",
        "goes on beside the teacher, on a core that a machine of 2 has while no worker takes it.",
    )
    report.write(arguments.output)


if __name__ == "__main__":
    main()
