"""A run resumes with the images and labels of training and validation that it was started with, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdkit.data import MultiLabelSource, ReplayedDataset
from kdkit.dataset import open_dataset
from kdkit.errors import CheckpointError, DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.training import data_record, image_record
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.data_record import RunRecord
from kdkit.training.distill import distill

RECIPE = ViewRecipe(size=32)
CHECKPOINT = Path("run/last.pth.tar")


def write_images(folder: Path, pixels: int = 16) -> Path:
    """Two images of each of three classes; all files have one size."""
    for number, name in enumerate(("cat", "dog", "owl")):
        for copy in range(2):
            (folder / name).mkdir(parents=True, exist_ok=True)
            colour = (10 + 40 * number, 20 * copy, 7)
            Image.new("RGB", (pixels, pixels), colour).save(folder / name / f"{copy}.bmp")
    return folder


def write_table(folder: Path, labels: str = "001122") -> Path:
    images = sorted((folder).rglob("*.bmp"))
    rows = [f"{path.relative_to(folder)},{label}\n" for path, label in zip(images, labels, strict=True)]
    (folder / "t.csv").write_text("path,label\n" + "".join(rows))
    return folder / "t.csv"


def opened(path: Path) -> ReplayedDataset:
    return open_dataset(str(path), recipe=RECIPE)


def resume(then: RunRecord | dict[str, Any], now: RunRecord) -> None:
    saved = then if isinstance(then, dict) else then.to_dict()
    now.check_same_keys(saved, CHECKPOINT)
    now.check_same(saved, CHECKPOINT)


def swap(folder: Path) -> None:
    (folder / "cat").rename(folder / "x")
    (folder / "dog").rename(folder / "cat")
    (folder / "x").rename(folder / "dog")


def add(folder: Path) -> None:
    shutil.copy(folder / "cat/1.bmp", folder / "cat/9.bmp")


def remove(folder: Path) -> None:
    (folder / "dog/1.bmp").unlink()


def move(folder: Path) -> None:
    (folder / "dog/1.bmp").rename(folder / "owl/7.bmp")


def replace_image(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "owl/1.bmp")


def rename_class(folder: Path) -> None:
    (folder / "owl").rename(folder / "auk")


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (swap, r"a file for the {0}image '(cat|dog)/[01].bmp' with another content than this run has: resume with the"),
    (replace_image, r"a file for the {0}image 'owl/1.bmp' of 822 bytes, this run has one of 246: resume with"),
    (add, r"made with 6 {0}images, this run has 7: 'cat/9.bmp' added; resume with the same images, or start another"),
    (remove, r"made with 6 {0}images, this run has 5: 'dog/1.bmp' missing; resume"),
    (move, r"made with 6 {0}images, this run has 6: 'owl/7.bmp' added, and 'dog/1.bmp' missing; resume"),
    (rename_class, r"'auk/0.bmp', 'auk/1.bmp' added, and 'owl/0.bmp', 'owl/1.bmp' missing; resume"),
]


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_other_images_under_the_same_name_are_refused_by_the_first(
    tmp_path: Path, part: str, change: Callable[[Path], None], message: str
) -> None:
    folders = {name: write_images(tmp_path / name) for name in ("training", "validation")}
    then = RunRecord.of(opened(folders["training"]), opened(folders["validation"]))
    change(folders[part])
    now = RunRecord.of(opened(folders["training"]), opened(folders["validation"]))
    with pytest.raises(DatasetError, match=message.format("validation " * (part == "validation"))) as caught:
        resume(then, now)
    assert "\n" not in str(caught.value)


def test_permuted_integer_labels_of_a_validation_table_are_refused(tmp_path: Path) -> None:
    training, folder = opened(write_images(tmp_path / "a")), write_images(tmp_path / "b")
    then = RunRecord.of(training, opened(write_table(folder)))
    now = RunRecord.of(training, opened(write_table(folder, "112200")))
    with pytest.raises(DatasetError, match=r"label 0 for the validation image 'cat/0.bmp', this run has 1: resume"):
        resume(then, now)


def test_several_labels_per_image_are_compared_too(tmp_path: Path) -> None:
    source = opened(write_images(tmp_path)).source
    vectors = np.eye(6, 4, dtype=np.float32)

    def record(targets: Any) -> RunRecord:
        return RunRecord.of(ReplayedDataset(MultiLabelSource(source, targets), RECIPE).selecting([4, 1, 0]), None)

    resume(record(vectors), record(vectors))
    with pytest.raises(DatasetError, match=r"other labels for 'dog/.*' than this run has|other labels for 'cat/"):
        resume(record(vectors), record(vectors[:, ::-1]))


def test_a_moved_folder_and_another_order_of_validation_rows_are_the_same_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "before")
    table = write_table(folder)
    then = RunRecord.of(opened(table), opened(table))
    moved = folder.rename(tmp_path / "after")
    for path in moved.rglob("*.bmp"):
        path.touch()
    training = opened(moved / "t.csv")
    head, *rows = (moved / "t.csv").read_text().splitlines(keepends=True)
    (moved / "t.csv").write_text(head + "".join(reversed(rows)))
    resume(then, RunRecord.of(training, opened(moved / "t.csv")))
    with pytest.raises(DatasetError, match=r"the same in another order, first 'cat/0.bmp' at 0; resume"):
        resume(then, RunRecord.of(opened(moved / "t.csv"), training))


def test_validation_may_be_added_and_not_left_out(tmp_path: Path) -> None:
    images = opened(write_images(tmp_path))
    with_validation, without = RunRecord.of(images, images), RunRecord.of(images, None)
    resume(without, with_validation)
    with pytest.raises(DatasetError, match=r"made with 6 validation images, this run has none: give them with --val"):
        resume(with_validation, without)


def test_a_checkpoint_from_before_the_record_is_compared_by_its_labels_alone(tmp_path: Path) -> None:
    folder = write_images(tmp_path)
    images = opened(folder)
    record = RunRecord.of(images, images)
    resume({}, record)
    resume({"labels": record.training.labels.packed}, record)
    other = RunRecord.of(opened(write_table(folder, "221100")), None)
    with pytest.raises(DatasetError, match=r"made with the label 0 for 'cat/0.bmp', this run has 2: resume"):
        resume({"labels": record.training.labels.packed}, other)


def test_odd_records_in_a_checkpoint_are_one_error(tmp_path: Path) -> None:
    record = RunRecord.of(opened(write_images(tmp_path)), None)
    whole = record.to_dict()["training"]
    for odd in (
        5,
        {**whole, "sha256": "0", "keys": b"no keys"},
        {**whole, "sha256": "0", "keys": 5},
        {**whole, "images": {"kind": "files", "values": b"no sizes"}},
        {**whole, "images": {"kind": "files", "values": b""}},
        {**whole, "images": 5},
    ):
        with pytest.raises(CheckpointError, match=r"last\.pth\.tar' (cannot be used|holds no)") as caught:
            resume({"training": odd}, record)
        assert "\n" not in str(caught.value)


def test_an_image_that_became_unreadable_is_skipped_where_such_images_are(tmp_path: Path) -> None:
    then = RunRecord.of(opened(write_images(tmp_path)), None)
    (tmp_path / "owl/1.bmp").write_bytes(b"cut")
    resume(then, RunRecord.of(opened(tmp_path).skipping_unreadable(), None))
    with pytest.raises(DatasetError, match=r"'owl/1.bmp' of 822 bytes, this run has one of 3: resume"):
        resume(then, RunRecord.of(opened(tmp_path), None))


def test_of_many_images_a_fixed_choice_is_compared_and_keys_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_record, "_SIZED", 4)
    monkeypatch.setattr(image_record, "_READ", 2)
    monkeypatch.setattr(data_record, "_NAMED", 5)
    folder = write_images(tmp_path)
    then = RunRecord.of(opened(folder), None)
    images = then.training.images
    assert len(images.rows) == 4
    assert len(images.values) == 6
    assert torch.equal(torch.tensor(images.rows), torch.tensor(RunRecord.of(opened(folder), None).training.images.rows))
    add(folder)
    with pytest.raises(DatasetError, match=r"made with 6 images, this run has 7: their keys differ; resume"):
        resume(then, RunRecord.of(opened(folder), None))


def test_a_run_keeps_the_record_in_its_checkpoints_and_resumes_by_it(tmp_path: Path) -> None:
    training, held_out = write_images(tmp_path / "training"), write_images(tmp_path / "validation")
    config = DistillConfig(
        data=str(training),
        validation=str(held_out),
        output=str(tmp_path / "run"),
        student="test_resnet",
        recipe=RECIPE,
        train=TrainConfig(epochs=1, batch_size=3, num_workers=0),
    )
    distill(config)
    again = replace(config, resume=True, validation=str(held_out.rename(tmp_path / "moved")))
    assert distill(again).training.epochs
    swap(tmp_path / "moved")
    with pytest.raises(DatasetError, match=r"for the validation image"):
        distill(again)
    swap(tmp_path / "moved")
    swap(training)
    with pytest.raises(DatasetError, match=r"for the image"):
        distill(again)
