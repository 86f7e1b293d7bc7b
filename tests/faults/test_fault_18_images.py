"""Fault 18: an image that cannot be read, a worker that raises, a worker that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_model, write_digits

from kdkit import ClassificationTask, LogitDistillationTask, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.config import TeacherConfig
from kdkit.data import EpochSampler, FolderSource, ReplayedDataset, ReplayLoader
from kdkit.errors import CacheMismatchError, ConfigError, DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill
from kdkit.training.train import train
from kdkit.types import Normalization

RECIPE = ViewRecipe(size=32, num_views=2)
DAMAGED = "3/013.png"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "images", 40)


def damage(images: Path) -> None:
    path = images / DAMAGED
    path.write_bytes(path.read_bytes()[:60])


def loader(dataset: ReplayedDataset, num_workers: int) -> ReplayLoader:
    return ReplayLoader(dataset, EpochSampler(range(len(dataset)), 10), Normalization(), num_workers=num_workers)


def test_fault_18_a_corrupt_image_stops_training_and_build_and_is_named(images: Path) -> None:
    damage(images)
    dataset = ReplayedDataset(FolderSource(images), RECIPE)
    with pytest.raises(DatasetError, match=rf"{DAMAGED}.*: repair or remove it \(.*--unreadable skip\)$"):
        train(ClassificationTask(tiny_model()), loader(dataset, 0), TrainConfig(epochs=1))
    build = BuildConfig(codec="float32", num_workers=0, batch_size=10)
    with pytest.raises(DatasetError, match=DAMAGED):
        build_cache(create_teacher(tiny_model()), dataset, images.parent / "t.h5", build)
    with pytest.raises(ConfigError, match="cannot skip"):
        build_cache(create_teacher(tiny_model()), dataset.skipping_unreadable(), images.parent / "t.h5", build)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError(), FileNotFoundError(2, "x")])
def test_fault_18_a_worker_that_dies_while_its_batch_is_fetched_is_named(
    images: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = loader(ReplayedDataset(FolderSource(images), RECIPE), 1)

    def broken(self: Any) -> Any:
        raise error

    monkeypatch.setattr(type(loading._loader), "__iter__", broken)
    with pytest.raises(DatasetError, match="a process that loads images died"):
        next(iter(loading))


class Unreachable(FolderSource):
    """On a server that hangs up."""

    def __getitem__(self, index: int) -> Any:
        raise ConnectionResetError("the server of the images hung up")


def test_fault_18_what_a_workers_dataset_raises_is_not_taken_for_its_death(images: Path) -> None:
    with pytest.raises(DatasetError, match="hung up") as raised:
        next(iter(loader(ReplayedDataset(Unreachable(images), RECIPE), 1)))
    assert "died" not in str(raised.value)


@pytest.mark.parametrize("index", [(-1, 0), (40, 0), (0, 2)])
def test_fault_18_what_names_no_view_is_no_unreadable_image(images: Path, index: tuple[int, int]) -> None:
    skipping = ReplayedDataset(FolderSource(images), RECIPE).skipping_unreadable()
    with pytest.raises(DatasetError, match="is out of range"):
        skipping.__getitems__([(0, 0), index])
    assert skipping[[3, 1]].row == 3  # type: ignore[index]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_fault_18_a_skipped_image_is_recorded_and_shifts_no_row(images: Path, num_workers: int) -> None:
    whole = ReplayedDataset(FolderSource(images), RECIPE)
    build_cache(
        create_teacher(tiny_model()), whole, images.parent / "t.h5", BuildConfig(codec="float32", num_workers=0)
    )
    expected = [whole[(row, 0)] for row in range(40)]
    damage(images)
    dataset = ReplayedDataset(FolderSource(images), RECIPE)
    with pytest.raises(CacheMismatchError, match=DAMAGED):  # not the file that the cache was built from
        open_cache(images.parent / "t.h5", dataset)
    cache = open_cache(images.parent / "t.h5", dataset.skipping_unreadable())
    skipping, skipped, seen = loader(dataset.skipping_unreadable(), num_workers), [], []
    skipping.on_skip = lambda key, reason: skipped.append((key, "unreadable" in reason))
    damaged = dataset.keys.index(DAMAGED)
    for pixels in skipping.pixel_batches():
        rows = pixels.row.tolist()
        logits = cache(skipping.to_batch(pixels)).logits
        for index, row in enumerate(rows):
            assert torch.equal(pixels.images[index], expected[row].image)
            assert pixels.target[index] == expected[row].target
            decoded = cache.codecs["logits"].decode(cache.read_encoded(cache.rows_of(pixels.row[index : index + 1]), 0))
            assert torch.equal(logits[index], decoded[0])
        seen += rows
    assert skipped == [(DAMAGED, True)]
    assert sorted(seen) == [row for row in range(40) if row != damaged]


def test_fault_18_a_run_that_skips_names_each_image_once(images: Path) -> None:
    damage(images)
    config = DistillConfig(
        data=str(images),
        validation=str(images),
        output=str(images.parent / "run"),
        student="test_resnet",
        teacher=TeacherConfig("test_resnet", checkpoint=str(images.parent / "teacher.pt")),
        recipe=ViewRecipe(size=32),
        train=TrainConfig(epochs=2, batch_size=10, num_workers=0),
        unreadable="skip",
    )
    torch.save(tiny_model(seed=1).state_dict(), images.parent / "teacher.pt")
    report = distill(config)
    assert [record["images"] for record in report.training.epochs] == [39, 39]
    assert report.training.top1 is not None
    (line,) = (images.parent / "run" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == DAMAGED


class _Raising(FolderSource):
    """Raises at one image."""

    def __getitem__(self, index: int) -> Any:
        if self.keys[index] == DAMAGED:
            raise ZeroDivisionError("an error of the user's own")
        return super().__getitem__(index)


def test_fault_18_a_worker_that_raises_names_the_image(images: Path) -> None:
    dataset = ReplayedDataset(_Raising(images), RECIPE)
    task = LogitDistillationTask(tiny_model(), tiny_model(seed=1))
    with pytest.raises(DatasetError, match=f"{DAMAGED}.*ZeroDivisionError: an error of the user's own"):
        train(task, loader(dataset, 1), TrainConfig(epochs=1))


@pytest.mark.slow
def test_fault_18_a_worker_that_is_killed_ends_training_and_build_with_a_clear_error(images: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    for what in ("train", "build"):
        command = [sys.executable, str(here / "kill_worker.py"), str(images), what]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert run.stdout.startswith("DatasetError: a process that loads images died"), run.stderr
    assert not (images.parent / "t.h5").exists()
    whole = ReplayedDataset(FolderSource(images), RECIPE)
    build_cache(
        create_teacher(tiny_model()), whole, images.parent / "t.h5", BuildConfig(codec="float32", num_workers=0)
    )
    assert open_cache(images.parent / "t.h5", whole).num_rows == 40
