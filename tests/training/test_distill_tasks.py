"""kdkit distill with other tasks than the usual one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support import digits, digits_dataset, tiny_model
from timm.data.mixup import mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from kdkit import build_cache, create_teacher
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.cli._parse import parse_config
from kdkit.config import StudentConfig, TeacherConfig
from kdkit.data import FolderSource, ReplayedDataset
from kdkit.errors import CacheStreamError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.student import load_student
from kdkit.teachers import Teacher
from kdkit.training import distill as module
from kdkit.training.components import create_loader
from kdkit.training.config import DistillConfig, ExportConfig, TrainConfig
from kdkit.training.create_task import create_task
from kdkit.training.distill import distill
from kdkit.training.export import export_student
from kdkit.training.report import TrainReport
from kdkit.training.train import train
from kdkit.types import TeacherOutput

TRAIN = TrainConfig(epochs=1, batch_size=20, num_workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits in class folders, and caches of a teacher's outputs on them."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for index in range(40):
        place = folder / "images" / str(data.target[index]) / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[index] * 15).astype("uint8")).convert("RGB").save(place)
    dataset = ReplayedDataset(FolderSource(folder / "images"), ViewRecipe(size=32, hflip=0.0))
    made = {
        "all": ("logits", "pooled"),
        "logits": ("logits",),
        "features": ("pooled",),
        "more": ("logits", "pooled", "stages.1"),
    }
    for name, streams in made.items():
        config = BuildConfig(streams=streams, codec="float16", num_workers=0)
        build_cache(create_teacher(tiny_model(seed=1)), dataset, folder / f"{name}.h5", config)
    return folder


def run(folder: Path, output: Path, cache: str, **options: object) -> DistillConfig:
    return DistillConfig(
        data=str(folder / "images"),
        output=str(output),
        cache=str(folder / f"{cache}.h5"),
        train=TRAIN,
        **options,  # type: ignore[arg-type]
    )


def test_features_from_a_cache_train_a_student_that_is_saved_as_a_plain_one(folder: Path, tmp_path: Path) -> None:
    config = run(
        folder,
        tmp_path / "run",
        "all",
        task="feature",
        student="test_efficientnet",
        distill_loss={"hint_mse": 2, "kl": 1},
    )
    report = distill(config)
    [record] = report.training.epochs
    assert record["kd_loss"] == pytest.approx(2 * record["hint_mse"] + record["kl"], rel=1e-5)
    saved = torch.load(report.checkpoint, weights_only=True, map_location="cpu")
    timm.create_model("test_efficientnet", num_classes=10).load_state_dict(saved["state_dict"])
    assert list(saved["task_state"]) == ["comparisons"]


def test_gradient_norms_of_the_terms_are_logged(folder: Path, tmp_path: Path) -> None:
    config = run(folder, tmp_path / "run", "all", student="test_resnet", distill_loss={"kl": 1.0, "bce": 3.0})
    distill(dataclasses.replace(config, train=dataclasses.replace(TRAIN, log_gradients=True, log_every=1)))
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "gradient_ratio" in record]
    assert [record["step"] for record in steps] == [0, 1]
    for record in steps:
        assert record["gradient_ratio"] == pytest.approx(record["gradient_kd_loss"] / record["gradient_task_loss"])
        assert record["gradient_kl"] > 0
        assert record["gradient_bce"] > 0
    with pytest.raises(ConfigError, match="log_gradients"):
        TrainConfig(log_gradients=True, compile=True)


def test_a_cache_without_the_stream_is_refused_with_the_command_that_adds_it(folder: Path, tmp_path: Path) -> None:
    config = run(
        folder, tmp_path / "run", "logits", task="feature", student="test_efficientnet", distill_loss="similarity"
    )
    with pytest.raises(CacheStreamError, match="--streams logits,pooled"):
        distill(config)


def test_a_two_headed_student_learns_through_its_second_head(folder: Path, tmp_path: Path) -> None:
    config = run(
        folder,
        tmp_path / "run",
        "all",
        task="token",
        student="deit_tiny_distilled_patch16_224",
        student_options={"depth": 1, "embed_dim": 48, "num_heads": 3},
        distill_loss="hard",
    )
    saved = torch.load(distill(config).checkpoint, weights_only=True, map_location="cpu")
    assert "head_dist.weight" in saved["state_dict"]


def test_labels_are_smoothed_as_timm_smooths_them_mixed_or_not_and_the_teachers_term_stays() -> None:
    torch.manual_seed(0)
    images, target, logits = torch.randn(4, 3, 32, 32), torch.tensor([3, 1, 9, 0]), torch.randn(4, 10)
    mixed = mixup_target(target, 10, lam=0.3, smoothing=0.1)
    plain, smooth = (
        create_task(DistillConfig(data="", output="", student="", cache="x", **more), tiny_model(), None, None).eval()
        for more in ({}, {"label_smoothing": 0.1})
    )
    results = {task: task(images, target, TeacherOutput(logits)) for task in (plain, smooth)}
    expected = LabelSmoothingCrossEntropy(0.1)(results[smooth]["output"], target)
    torch.testing.assert_close(results[smooth]["task_loss"], expected)
    assert not torch.isclose(results[plain]["task_loss"], expected)
    assert torch.equal(results[plain]["kd_loss"], results[smooth]["kd_loss"])
    soft = smooth(images, mixup_target(target, 10, lam=0.3, smoothing=0.0), TeacherOutput(logits))
    torch.testing.assert_close(soft["task_loss"], SoftTargetCrossEntropy()(soft["output"], mixed))
    with pytest.raises(ConfigError, match="label_smoothing"):
        DistillConfig(data="", output="", student="", cache="x", label_smoothing=1.0)


def test_a_task_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="logit, feature, token"):
        DistillConfig(data="", output="", student="", cache="x", task="features")


def test_the_classifier_that_srrl_needs_is_that_of_a_live_teacher_beside_the_cache(
    folder: Path, tmp_path: Path
) -> None:
    torch.save(tiny_model(seed=1).state_dict(), tmp_path / "t.pth")
    teacher = TeacherConfig("test_resnet", checkpoint=str(tmp_path / "t.pth"))
    options: dict[str, Any] = {"distill_loss": {"srrl": 2}, "student_taps": ("stages.4",), "teacher_taps": ("pooled",)}
    options["student"] = "test_efficientnet"
    with pytest.raises(ConfigError, match="--teacher NAME --cache-weights 1 0"):
        distill(run(folder, tmp_path / "no", "all", **options))
    cached = run(folder, tmp_path / "cached", "all", teacher=teacher, cache_weights=(1.0, 0.0), **options)
    live = dataclasses.replace(
        cached, cache=None, cache_weights=None, output=str(tmp_path / "live"), recipe=ViewRecipe(size=32, hflip=0.0)
    )
    first, second = (distill(config).training.epochs[-1]["srrl"] for config in (cached, live))
    assert first == pytest.approx(second, rel=1e-3)  # a cache holds features in float16


SIMKD: dict[str, Any] = {
    "student": "kdkit.teachers.reused_head:create",
    "student_options": {"backbone": "test_efficientnet", "width": 96},
    "distill_loss": "hint_mse",
    "task_loss_weight": 0.0,
}
SRRL: dict[str, Any] = {"student": "test_efficientnet", "distill_loss": "srrl"}


@pytest.mark.parametrize("options", [SRRL, SIMKD], ids=["srrl", "simkd"])
def test_a_teacher_beside_a_cache_of_features_alone_gives_its_classifier_and_does_not_run(
    folder: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tiny_model(seed=1).state_dict(), tmp_path / "t.pth")
    teacher = TeacherConfig("test_resnet", checkpoint=str(tmp_path / "t.pth"))
    config = run(folder, tmp_path / "run", "features", teacher=teacher, cache_weights=(0.0, 0.0), **options)
    again = dataclasses.replace(config, overwrite=True)
    ran: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "forward", lambda self, batch: ran.append(batch))
        distill(config)
    assert ran == []
    with pytest.raises(ConfigError, match=r"features\.h5' has no logits to average, but the weight 1: give it 0"):
        distill(dataclasses.replace(again, cache_weights=(1.0, 0.0)))
    monkeypatch.setattr(Teacher, "head_weight", None)  # a model of anybody's
    with pytest.raises(ConfigError, match=r"needs the classifier of its teacher, and .* does not end in a linear"):
        distill(again)


@pytest.mark.parametrize(("task", "streams"), [("logit", ("logits",)), ("feature", ("logits", "pooled"))])
def test_a_run_reads_the_streams_that_its_task_needs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, streams: tuple[str, ...]
) -> None:
    read = []

    def watched(*parts: Any, teacher_source: CachedTeacher, **more: Any) -> TrainReport:
        read.append(teacher_source.streams)
        return train(*parts, teacher_source=teacher_source, **more)

    monkeypatch.setattr(module, "train", watched)
    loss = {"logit": "kl", "feature": "hint_mse"}[task]
    distill(run(folder, tmp_path / "run", "more", task=task, student="test_vit", distill_loss=loss))
    assert read == [streams]


def test_data_that_names_no_classes_takes_their_number_from_the_teacher(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = digits(40)
    source.class_names = None
    monkeypatch.setattr(module, "open_dataset", lambda name, recipe, **_: ReplayedDataset(source, recipe))
    recipe = ViewRecipe(size=32, hflip=0.0)
    teacher = create_teacher(tiny_model(seed=1))
    build_cache(teacher, ReplayedDataset(source, recipe), folder / "nameless.h5", BuildConfig(num_workers=0))
    config = run(folder, tmp_path / "run", "nameless", student="test_vit", student_options={"pretrained": False})
    report = distill(config)
    described = json.loads((report.output / "student.json").read_text())
    assert described["model_args"]["num_classes"] == 10
    assert "pretrained" not in described["model_args"]  # its weights are in the checkpoint
    assert len(json.loads((report.output / "metrics.jsonl").read_text().splitlines()[0])) > 3
    own = dataclasses.replace(
        config,
        cache=None,
        teacher=TeacherConfig("ema"),
        train=dataclasses.replace(TRAIN, ema_decay=0.9),
        output=str(tmp_path / "own"),
        student_options={},
    )
    with pytest.raises(ConfigError, match="does not name its classes"):
        distill(own)


def test_a_file_in_teachers_that_is_no_card_does_not_stop_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers" / "notes.yaml").write_text("a: 1")
    monkeypatch.chdir(tmp_path)
    assert distill(run(folder, tmp_path / "run", "all", student="test_vit")).preflight is not None


def test_taps_are_given_as_people_type_them_and_to_the_task_that_has_them() -> None:
    given = ["--data", "d", "--output", "o", "--student", "s", "--cache", "c", "--teacher_taps", "stages.1,pooled"]
    assert parse_config(DistillConfig, "distill", [*given, "--loss", "hint_mse"]).teacher_taps == ("stages.1", "pooled")
    with pytest.raises(ConfigError, match="taps are of the task feature"):
        parse_config(DistillConfig, "distill", given)


@pytest.mark.parametrize(("count", "batches"), [(128, 1), (129, 1), (131, 1)])
def test_no_rank_is_left_with_a_batch_of_an_image_or_two(
    monkeypatch: pytest.MonkeyPatch, count: int, batches: int
) -> None:
    monkeypatch.setattr("kdkit.runtime.distributed.world_size", lambda: 2)
    config = DistillConfig(data="", output="", student="", cache="x", train=TrainConfig(batch_size=64, num_workers=0))
    task = create_task(config, tiny_model(), None, None)
    assert len(create_loader(digits_dataset(count), task, config, torch.device("cpu"), shuffle=True)) == batches


def test_a_cache_without_logits_is_refused_at_once_by_a_task_that_compares_them(folder: Path, tmp_path: Path) -> None:
    dataset = ReplayedDataset(FolderSource(folder / "images"), ViewRecipe(size=32, hflip=0.0))
    config = BuildConfig(streams=("pooled",), num_workers=0)
    build_cache(create_teacher(tiny_model(seed=1)), dataset, folder / "pooled.h5", config)
    with pytest.raises(CacheStreamError, match=r"no stream 'logits', it has streams pooled: .* pooled,logits"):
        distill(run(folder, tmp_path / "run", "pooled", student="test_vit"))
    assert not (tmp_path / "run").exists()


def test_a_student_with_its_teachers_classifier_is_trained_resumed_evaluated_and_exported(
    folder: Path, tmp_path: Path
) -> None:
    torch.save(tiny_model(seed=1).state_dict(), tmp_path / "t.pth")
    name = "kdkit.teachers.reused_head:create"
    config = run(
        folder,
        tmp_path / "run",
        "all",
        teacher=TeacherConfig("test_resnet", checkpoint=str(tmp_path / "t.pth")),
        cache_weights=(1.0, 0.0),
        student=name,
        student_options={"backbone": "test_efficientnet", "width": 96},
        distill_loss="hint_mse",
        task_loss_weight=0.0,
    )
    with pytest.raises(ConfigError, match="with weights of its own: give --teacher NAME"):
        distill(dataclasses.replace(config, teacher=None, cache_weights=None))
    distill(config)
    distill(dataclasses.replace(config, resume=True))
    export_student(ExportConfig(student=str(tmp_path / "run"), arch=name, output=str(tmp_path / "out")))
    found = [load_student(StudentConfig(student=str(tmp_path / place), arch=name))[0] for place in ("run", "out")]
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found[0](images), found[1](images))
    assert torch.equal(found[1].head_weight, tiny_model(seed=1).get_classifier().weight)
