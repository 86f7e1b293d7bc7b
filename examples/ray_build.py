"""Cache a teacher with Ray Data: offline inference on the machines of a Ray cluster, writing kdkit's own shards.

    pip install "ray[data]"
    python examples/ray_build.py --data imagenet/train --teacher resnet50.a1_in1k --output t.h5 --actors 8 --gpus 1

The driver plans the cache and holds its writer's lock; each actor holds a teacher, is handed one shard (rows of a view)
after the other, and seals it. At the end kdkit.build_cache finds every shard there and packs them: the file holds,
byte for byte, what `kdkit cache build` makes with the same batch size. What was stopped goes on when it is started
again. Data and output lie on a file system that all machines share. A test runs it on one machine with two actors,
where Ray is installed; it has not been run on a cluster.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

import kdkit
from kdkit.building.build import BuildReport
from kdkit.building.config import BuildConfig
from kdkit.building.resume import check_writable, resume_or_start
from kdkit.building.shards import fill_together
from kdkit.cache.format.metadata import Shard
from kdkit.cache.shards.folder import ShardFolder, shard_folder
from kdkit.cache.shards.lock import writer_lock
from kdkit.config import TeacherConfig
from kdkit.data import ReplayedDataset
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_dataset, resolve_teacher
from kdkit.teachers import Teacher


@dataclass(frozen=True)
class Job:
    """What is cached, and where it goes."""

    data: str
    """Folder of training images, one folder a class."""
    teacher: TeacherConfig
    """Who is asked."""
    output: str
    """The cache file to be."""
    recipe: ViewRecipe
    """What the views look like."""
    build: BuildConfig
    """How the cache is built."""
    device: str
    """Where each actor's teacher runs."""

    def dataset(self) -> ReplayedDataset:
        """The replayed images."""
        return resolve_dataset(self.data, self.recipe)

    def run_teacher(self) -> Teacher:
        """The teacher, on its device."""
        return resolve_teacher(self.teacher, torch.device(self.device))


class ShardFiller:
    """An actor: a teacher and the parts folder, for as many shards as it is handed."""

    def __init__(self, job: Job) -> None:
        self.job, self.dataset, self.teacher = job, job.dataset(), job.run_teacher()
        self.parts = ShardFolder.open(shard_folder(Path(job.output)))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Fills and seals the shard that `row` names."""
        shard = Shard(int(row["view"]), int(row["start"]), int(row["stop"]))
        job = self.job
        fill_together(self.parts, [shard], self.teacher, self.dataset, job.build, job.device, show_progress=False)
        return {**row, "images": shard.num_rows}


def fill_with_ray(job: Job, teacher: Teacher, dataset: ReplayedDataset, *, actors: int, gpus: float) -> int:
    """Plans or goes on, and has the missing shards filled; returns the images that were asked about."""
    check_writable(job.output)
    folder = shard_folder(Path(job.output))
    folder.mkdir(exist_ok=True)
    with writer_lock(folder):
        parts = resume_or_start(Path(job.output), teacher, dataset, job.build, job.device, ())
        missing = [{"view": shard.view, "start": shard.start, "stop": shard.stop} for shard in parts.missing()]
        if not missing:
            return 0
        shards = ray.data.from_items(missing, override_num_blocks=len(missing))
        filled = shards.map(ShardFiller, fn_constructor_args=(job,), concurrency=actors, num_gpus=gpus)
        return sum(int(row["images"]) for row in filled.take_all())


def build_with_ray(job: Job, *, actors: int, gpus: float = 0) -> tuple[BuildReport, int]:
    """The packed cache, and how many images this run asked about."""
    teacher, dataset = job.run_teacher(), job.dataset()
    asked = 0
    if not Path(job.output).is_file():
        asked = fill_with_ray(job, teacher, dataset, actors=actors, gpus=gpus)
    return kdkit.build_cache(teacher, dataset, job.output, job.build, device=job.device), asked


def main() -> None:
    """Reads the command line, and builds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("--output", required=True)
    parser.add_argument("--size", type=int, default=ViewRecipe.size)
    parser.add_argument("--views", type=int, default=ViewRecipe.num_views)
    parser.add_argument("--codec")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    given = parser.parse_args()
    job = Job(
        data=str(Path(given.data).absolute()),
        teacher=TeacherConfig(given.teacher, given.checkpoint),
        output=str(Path(given.output).absolute()),
        recipe=ViewRecipe(size=given.size, num_views=given.views),
        build=BuildConfig(codec=given.codec),
        device="cuda" if given.gpus else "cpu",
    )
    report, asked = build_with_ray(job, actors=given.actors, gpus=given.gpus)
    print(f"{report.path}: {report.num_rows:,} images x {report.num_views} views, {asked:,} asked")


if __name__ == "__main__":
    main()
