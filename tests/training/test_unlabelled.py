"""Training on images without labels: what it needs, what it logs, and labels that are out of range."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import CLASSES, digits, tiny_model, write_digits

from kdkit import ClassificationTask, LogitDistillationTask, build_cache, create_teacher, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.cache import open_cache
from kdkit.config import TeacherConfig
from kdkit.data import ArraySource, ReplayedDataset, create_loader
from kdkit.errors import ConfigError, DatasetError, LabelError
from kdkit.evaluation.config import EvaluateConfig
from kdkit.evaluation.student import evaluate_student
from kdkit.recipe import ViewRecipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill
from kdkit.training.evaluate import evaluate
from kdkit.training.labels import labelled_batches
from kdkit.training.meter import Meter
from kdkit.training.train import train
from kdkit.training.validation import check_validation

COUNT = 24
EXACT = BuildConfig(codec="float32", num_workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same digits as `flat` without labels, as `val` in class folders, and a cache of the flat folder."""
    folder = tmp_path_factory.mktemp("unlabelled")
    write_digits(folder / "val", COUNT)
    (folder / "flat").mkdir()
    source = digits(COUNT)
    for row in range(COUNT):
        source[row][0].save(folder / "flat" / f"{row:03d}.png")
    teacher = create_teacher(tiny_model(seed=1), class_names=CLASSES)
    for name, recipe in (("plain", "rrc"), ("mixed", "funmatch")):
        dataset = open_dataset(str(folder / "flat"), recipe=ViewRecipe.preset(recipe, size=32, num_views=2))
        build_cache(teacher, dataset, folder / f"{name}.h5", EXACT)
    return folder


def config(folder: Path, output: Path, **changes: Any) -> DistillConfig:
    train = TrainConfig(epochs=2, batch_size=8, num_workers=0)
    values = {"data": str(folder / "flat"), "cache": str(folder / "plain.h5"), "student": "test_resnet", "train": train}
    return DistillConfig(**{**values, "output": str(output), **changes})


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cache", ["plain.h5", "mixed.h5"])
def test_a_flat_folder_teaches_by_the_cache_alone(folder: Path, tmp_path: Path, cache: str) -> None:
    output = tmp_path / "run"
    report = distill(config(folder, output, cache=str(folder / cache), validation=str(folder / "val")))
    assert report.preflight is not None
    assert report.preflight.teacher_top1 is None
    assert "top-1" not in str(report.preflight)
    for record in records(output):
        assert record["loss"] == pytest.approx(record["kd_loss"])
        assert record["task_loss"] == 0
        assert "teacher_top1" not in record
    assert report.training.top1 is not None
    assert json.loads((output / "student.json").read_text())["class_names"] == CLASSES
    assert evaluate_student(EvaluateConfig(student=str(output), data=str(folder / "val"))).num_images == COUNT


def test_a_cache_of_unlabelled_images_holds_the_class_names_that_its_teacher_knows(folder: Path) -> None:
    assert open_cache(folder / "plain.h5").class_names == CLASSES


def test_a_live_teacher_gives_classes_and_names_too(folder: Path, tmp_path: Path) -> None:
    taught = tmp_path / "teacher"
    distill(config(folder, taught))
    output, recipe = tmp_path / "live", ViewRecipe(size=32)
    distill(config(folder, output, cache=None, teacher=TeacherConfig(str(taught)), recipe=recipe))
    assert json.loads((output / "student.json").read_text())["class_names"] == CLASSES


def test_images_without_labels_need_a_teacher_and_a_loss_without_labels(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no image of .*flat' has a label, and there is no teacher"):
        distill(config(folder, tmp_path / "run", cache=None, recipe=ViewRecipe(size=32)))
    with pytest.raises(ConfigError, match=r"the loss 'dkd' needs labels, and no image of .*flat' has one"):
        distill(config(folder, tmp_path / "run", distill_loss="dkd"))
    with pytest.raises(DatasetError, match=r"no image of .*flat' has a label to validate with"):
        distill(config(folder, tmp_path / "run", validation=str(folder / "flat")))
    distill(config(folder, tmp_path / "run"))
    with pytest.raises(DatasetError, match=r"no image of .*flat' has a label to evaluate with"):
        evaluate_student(EvaluateConfig(student=str(tmp_path / "run"), data=str(folder / "flat")))


def write_table(folder: Path, name: str, labels: list[object]) -> str:
    path = folder / name
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([f"flat/{row:03d}.png", label] for row, label in enumerate(labels))
    return str(path)


def test_a_label_out_of_range_is_named_with_its_image_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    labels: list[object] = [row % 10 for row in range(COUNT)]
    labels[7] = 12
    table = write_table(folder, "odd.csv", labels)
    options = {"cache": None, "recipe": ViewRecipe(size=32), "student_options": {"num_classes": 10}}
    with pytest.raises(LabelError, match=r"the label of 'flat/007\.png' in .*odd\.csv' is 12: expected 0 to 9"):
        distill(config(folder, tmp_path / "run", data=table, **options))
    assert not (tmp_path / "run" / "last.pth.tar").exists()


class Silent(ArraySource):
    """A source that tells its labels only with the images."""

    targets = None  # type: ignore[assignment]

    def __init__(self, labels: list[int]) -> None:
        plain = digits(COUNT)
        super().__init__(plain.images, plain.targets, keys=plain.keys, class_names=CLASSES)
        self.labels, self.targets = labels, None

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(self.images[index]).convert("RGB"), self.labels[index]


@pytest.mark.parametrize("label", [10, -2])
@pytest.mark.parametrize("known", ["known", "on loading", "on loading, mixed"])
def test_a_custom_loop_names_the_image_of_a_label_out_of_range_before_it_is_trained_on(known: str, label: int) -> None:
    labels = [row % 10 for row in range(COUNT)]
    labels[7] = label
    plain = digits(COUNT)
    recipe = ViewRecipe(size=32, mixup_alpha=0.8 if known.endswith("mixed") else 0.0)
    task = ClassificationTask(tiny_model())
    before = {name: value.clone() for name, value in tiny_model().named_parameters()}

    def loop() -> None:
        source: ArraySource = Silent(labels)
        if known == "known":
            source = ArraySource(plain.images, labels, keys=plain.keys, class_names=CLASSES)
        loader = create_loader(ReplayedDataset(source, recipe), task, batch_size=COUNT, num_workers=0)
        train(task, loader, TrainConfig(epochs=1, batch_size=COUNT))

    with pytest.raises(DatasetError, match=f"the label of 'digit-7'.* is {label}: expected 0 to"):
        loop()
    assert all(torch.equal(value, before[name]) for name, value in task.trainable_module.named_parameters())


def test_a_task_without_labels_takes_images_of_any_classes() -> None:
    plain = digits(COUNT)
    dataset = ReplayedDataset(ArraySource(plain.images, [row + 10 for row in range(COUNT)]), ViewRecipe(size=32))
    task = LogitDistillationTask(tiny_model(), tiny_model(seed=1), task_loss_weight=0)
    report = train(task, create_loader(dataset, task, batch_size=8, num_workers=0), TrainConfig(epochs=1))
    assert math.isfinite(report.epochs[0]["loss"])


def test_few_labels_train_with_those_alone(folder: Path, tmp_path: Path) -> None:
    labels: list[object] = [row % 10 if row < 6 else "" for row in range(COUNT)]
    table = write_table(folder, "few.csv", labels)
    recipe = ViewRecipe(size=32)
    build_cache(create_teacher(tiny_model(seed=1)), open_dataset(table, recipe=recipe), tmp_path / "few.h5", EXACT)
    distill(config(folder, tmp_path / "run", data=table, cache=str(tmp_path / "few.h5")))
    epochs = [record for record in records(tmp_path / "run") if record["kind"] == "epoch"]
    assert all(record["task_loss"] > 0 for record in epochs)
    assert all(0 <= record["teacher_top1"] <= 100 for record in epochs)


@pytest.mark.parametrize(
    ("way", "loss"),
    [
        ("live", "kl"),
        ("live", "dkd"),
        ("plain", "nkd"),
        ("plain", "ofa"),
        *(("mixed", loss) for loss in ("dkd", "nkd", "ofa")),
    ],
)
def test_with_few_labels_every_loss_trains_live_and_cached_and_with_mixing(
    folder: Path, tmp_path: Path, way: str, loss: str
) -> None:
    labels: list[object] = [f"class {row % 10}" if row < 10 else "" for row in range(COUNT)]
    table = write_table(folder, f"few-{way}.csv", labels)
    recipe = ViewRecipe.preset("funmatch" if way == "mixed" else "rrc", size=32, num_views=2)
    parts: dict[str, Any] = {"cache": str(tmp_path / "few.h5"), "distill_loss": loss, "preflight": True}
    if way == "live":
        save_file(tiny_model(seed=1).state_dict(), tmp_path / "teacher.safetensors")
        teacher = TeacherConfig("test_resnet", checkpoint=str(tmp_path / "teacher.safetensors"))
        parts |= {"cache": None, "teacher": teacher, "recipe": recipe}
    else:
        build_cache(create_teacher(tiny_model(seed=1)), open_dataset(table, recipe=recipe), tmp_path / "few.h5", EXACT)
    distill(
        config(
            folder,
            tmp_path / "run",
            data=table,
            train=TrainConfig(epochs=1, batch_size=2, num_workers=0, log_every=1),
            **parts,
        )
    )
    steps = [record for record in records(tmp_path / "run") if record["kind"] == "step"]
    assert all(math.isfinite(record["loss"]) for record in steps)
    if loss != "kl":  # some batches of 2 have no label
        assert any(record["task_loss"] == 0 == record["kd_loss"] for record in steps)
        assert any(record["task_loss"] > 0 < record["kd_loss"] for record in steps)


def test_an_evaluation_is_over_the_labelled_images_alone() -> None:
    source, task = digits(COUNT), ClassificationTask(tiny_model())
    few = np.where(np.arange(COUNT) % 3 == 0, source.targets, -1)
    recipe, kept = ViewRecipe.evaluation(32), np.flatnonzero(few >= 0)
    some = ReplayedDataset(ArraySource(source.images, few, keys=source.keys, class_names=CLASSES), recipe)
    alone = ReplayedDataset(
        ArraySource(source.images[kept], few[kept], keys=[source.keys[row] for row in kept], class_names=CLASSES),
        recipe,
    )
    found = [
        evaluate(task, create_loader(dataset, task, batch_size=8, num_workers=0, shuffle=False))
        for dataset in (some, alone)
    ]
    assert found[0] == pytest.approx(found[1])


def test_the_mean_of_a_term_is_over_the_steps_that_measured_it() -> None:
    meter = Meter()
    for value, count in ((50.0, 4), (math.nan, 8), (20.0, 2)):
        meter.add({"loss": torch.tensor(1.0), "teacher_top1": torch.tensor(value)}, count, {})
    assert ["teacher_top1" in record for record in meter.flush()] == [True, False, True]
    mean = Meter(meter.sums).mean()
    assert mean["teacher_top1"] == pytest.approx((50 * 4 + 20 * 2) / 6)
    assert mean["loss"] == pytest.approx(1.0)
    assert set(mean) == {"loss", "teacher_top1", "images", "seconds", "images_per_second", "waiting"}


def test_labels_that_a_source_knows_are_made_an_array_once_an_epoch_not_once_a_batch() -> None:
    class Counted(ArraySource):
        reads = 0

        def __getattribute__(self, name: str) -> Any:
            Counted.reads += name == "targets"
            return super().__getattribute__(name)

    labels = np.arange(64) % len(CLASSES)
    source = Counted(np.zeros((64, 8, 8), np.uint8), labels)
    dataset = ReplayedDataset(source, ViewRecipe(size=32), num_classes=len(CLASSES))
    task = ClassificationTask(tiny_model())
    reads = []
    for batch_size in (32, 4):
        loader = create_loader(dataset, tiny_model(), batch_size=batch_size, num_workers=0)
        Counted.reads = 0
        assert len(list(labelled_batches(loader, task))) == 64 // batch_size
        reads.append(Counted.reads)
    assert reads[0] == reads[1]


@pytest.mark.parametrize(("names", "is_told"), [(["cat", "dog"], True), (["0", "1"], False)])
def test_named_classes_to_validate_a_student_without_names_are_told_to_be_taken_in_their_order(
    names: list[str], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    unlabelled, named = ArraySource(images, [-1, -1]), ArraySource(images, [0, 1], class_names=names)
    training, held_out = (ReplayedDataset(source, ViewRecipe(size=8)) for source in (unlabelled, named))
    config = DistillConfig(data="d", output="o", student="s", cache="c", validation="v")
    check_validation(config, held_out, training, None, 2)
    assert ("do not name the classes" in caplog.text) == is_told
