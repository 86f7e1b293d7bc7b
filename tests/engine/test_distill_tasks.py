"""kdkit distill with other tasks than the usual one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support import tiny_model
from timm.data.mixup import mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from kdkit import build_cache, create_teacher
from kdkit.config import BuildConfig, DistillConfig, ReplayRecipe, TrainConfig
from kdkit.data import FolderSource, ReplayedDataset
from kdkit.engine.create_task import create_task
from kdkit.engine.distill import distill
from kdkit.errors import ConfigError, MissingTeacherError
from kdkit.signals import TeacherOutput

TRAIN = TrainConfig(epochs=1, batch_size=20, num_workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits in class folders, and caches of what a teacher says about them."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for index in range(40):
        place = folder / "images" / str(data.target[index]) / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[index] * 15).astype("uint8")).convert("RGB").save(place)
    dataset = ReplayedDataset(FolderSource(folder / "images"), ReplayRecipe(size=32, hflip=0.0))
    for name, streams in (("all", ("logits", "pooled")), ("logits", ("logits",))):
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


def test_each_look_logs_how_strongly_the_terms_pull_at_the_head(folder: Path, tmp_path: Path) -> None:
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
    with pytest.raises(MissingTeacherError, match=r"--build\.streams '\[logits, pooled\]'"):
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
    images, target, said = torch.randn(4, 3, 32, 32), torch.tensor([3, 1, 9, 0]), torch.randn(4, 10)
    mixed = mixup_target(target, 10, lam=0.3, smoothing=0.1)
    plain, smooth = (
        create_task(DistillConfig(data="", output="", student="", cache="x", **more), tiny_model(), None, None).eval()
        for more in ({}, {"label_smoothing": 0.1})
    )
    results = {task: task(images, target, TeacherOutput(said)) for task in (plain, smooth)}
    expected = LabelSmoothingCrossEntropy(0.1)(results[smooth]["output"], target)
    torch.testing.assert_close(results[smooth]["task_loss"], expected)
    assert not torch.isclose(results[plain]["task_loss"], expected)
    assert torch.equal(results[plain]["kd_loss"], results[smooth]["kd_loss"])
    soft = smooth(images, mixup_target(target, 10, lam=0.3, smoothing=0.0), TeacherOutput(said))
    torch.testing.assert_close(soft["task_loss"], SoftTargetCrossEntropy()(soft["output"], mixed))
    with pytest.raises(ConfigError, match="label_smoothing"):
        DistillConfig(data="", output="", student="", cache="x", label_smoothing=1.0)


def test_a_task_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="logit, feature, token"):
        DistillConfig(data="", output="", student="", cache="x", task="features")
