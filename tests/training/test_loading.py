"""Training with several views per decode: the choice of auto, a stop in the middle of a group, and what is recorded."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import RECIPE, digits_dataset, tiny_model, write_digits

from kdkit import ClassificationTask
from kdkit.cli import main
from kdkit.cli._parse import parse_config
from kdkit.data import ReplayedDataset
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill
from kdkit.training.loading import choose_views_per_decode
from kdkit.training.step import TrainingStep

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("loading") / "images", 60)


def config(images: Path, output: Path, views_per_decode: Any, **train: Any) -> DistillConfig:
    options = {"epochs": 5, "batch_size": 16, "num_workers": 0, "checkpoint_every": 0, **train}
    return DistillConfig(
        data=str(images),
        output=str(output),
        student="test_vit",
        recipe=ViewRecipe(size=16, num_views=4),
        train=TrainConfig(views_per_decode=views_per_decode, **options),
        preflight=False,
    )


def losses(output: Path) -> list[float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "step"]


@pytest.mark.parametrize("stopped_after", [5, 9])
def test_a_run_that_is_stopped_within_a_group_resumes_to_the_same_losses(
    images: Path, tmp_path: Path, stopped_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(config(images, tmp_path / "plain", 4))
    update, done = TrainingStep.update, 0

    def stop(step: TrainingStep) -> None:
        nonlocal done
        update(step)
        done += 1
        if done == stopped_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingStep, "update", stop)
    with pytest.raises(SystemExit):
        distill(config(images, tmp_path / "stopped", 4))
    monkeypatch.undo()
    assert len(losses(tmp_path / "stopped")) == stopped_after
    distill(dataclasses.replace(config(images, tmp_path / "stopped", "auto"), resume=True))  # takes the run's 4
    assert losses(tmp_path / "stopped") == losses(tmp_path / "plain")
    assert len(losses(tmp_path / "plain")) == 15
    with pytest.raises(ConfigError, match=r"train.views_per_decode = 4, this run has 2"):
        distill(dataclasses.replace(config(images, tmp_path / "stopped", 2), resume=True))


def measured(monkeypatch: pytest.MonkeyPatch, decode: float, whole: float, step: float) -> None:
    """Replaces the clock's findings: seconds per image of decoding, of all loading, and of a step."""
    monkeypatch.setattr("kdkit.training.loading._measure_loading", lambda dataset: (decode, whole, []))
    monkeypatch.setattr("kdkit.training.loading._measure_step", lambda *_: step)


def choose(dataset: ReplayedDataset, num_workers: int = 1) -> tuple[int, str]:
    settings = TrainConfig(views_per_decode="auto", num_workers=num_workers, batch_size=8)
    found = choose_views_per_decode(dataset, ClassificationTask(tiny_model()), None, settings, CPU)
    return found.views_per_decode, found.reason


@pytest.mark.parametrize(
    ("decode", "whole", "step", "num_workers", "views", "reason"),
    [
        (1.5e-3, 3e-3, 1e-3, 1, 4, "loading is the limit: 3 ms an image, 1 ms in a step"),
        (1.5e-3, 3e-3, 1e-3, 4, 1, "loading is not the limit: 0.75 ms an image, 1 ms in a step"),
        (1.5e-3, 3e-3, 4e-3, 0, 1, "loading is not the limit: 3 ms an image, 4 ms in a step"),
        (0.2e-3, 3e-3, 1e-3, 1, 1, "decoding takes only 7% of loading"),
    ],
)
def test_auto_is_four_where_loading_is_the_limit_and_decoding_counts_else_one(
    monkeypatch: pytest.MonkeyPatch,
    decode: float,
    whole: float,
    step: float,
    num_workers: int,
    views: int,
    reason: str,
) -> None:
    measured(monkeypatch, decode, whole, step)
    assert choose(digits_dataset(20, dataclasses.replace(RECIPE, num_views=6)), num_workers) == (views, reason)


@pytest.mark.parametrize(
    ("recipe", "views"),
    [
        ({"num_views": 1}, 1),
        ({"num_views": 3}, 3),
        ({"num_views": 8, "mixup_alpha": 0.8}, 1),
        ({"num_views": 8, "mixup_alpha": 0.8, "views_per_partner": 4}, 4),
        ({"num_views": 8, "mixup_alpha": 0.8, "views_per_partner": 2}, 2),
    ],
)
def test_auto_is_at_most_the_views_and_the_views_with_one_partner(
    monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], views: int
) -> None:
    measured(monkeypatch, 1.5e-3, 3e-3, 1e-3)
    assert choose(digits_dataset(20, dataclasses.replace(RECIPE, **recipe)))[0] == views


def test_auto_measures_a_real_loader_and_a_real_step_without_an_effect(images: Path) -> None:
    dataset = digits_dataset(20)
    task = ClassificationTask(tiny_model())
    before = {name: value.clone() for name, value in task.state_dict().items()}
    settings = TrainConfig(views_per_decode="auto", num_workers=1, batch_size=8)
    found = choose_views_per_decode(dataset, task, None, settings, CPU)
    assert found.views_per_decode in (1, 2)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_the_default_is_one_in_python_and_auto_on_the_command_line(images: Path, tmp_path: Path) -> None:
    assert TrainConfig().views_per_decode == 1
    positionals = {"DATA": "data"}
    given = ["images", "--student", "test_vit", "-o", "run"]
    assert parse_config(DistillConfig, "distill", given, positionals).train.views_per_decode == "auto"
    flags = [*given, "--views-per-decode", "2"]
    assert parse_config(DistillConfig, "distill", flags, positionals).train.views_per_decode == 2
    (tmp_path / "run.yaml").write_text("train:\n  views_per_decode: 3\n  epochs: 7\n")
    found = parse_config(DistillConfig, "distill", [*given, "--config", str(tmp_path / "run.yaml")], positionals).train
    assert (found.views_per_decode, found.epochs) == (3, 7)
    with pytest.raises(ConfigError, match="views_per_decode must be from 1 to 1,024 views, got 0"):
        TrainConfig(views_per_decode=0)


def test_the_header_and_the_configuration_state_the_number(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["distill", str(images), "--student", "test_vit", "--size", "16", "--views", "4", "--epochs", "1"]
    for number, given in enumerate((["--views-per-decode", "4"], [])):
        output = tmp_path / str(number)
        assert main([*flags, "--batch-size", "20", "--workers", "0", "-o", str(output), *given]) == 0
        shown = capsys.readouterr().err
        used = yaml.safe_load((output / "config.yaml").read_text())["train"]["views_per_decode"]
        assert f"4 per image, 16 pixels, {used} per decode" in shown
        assert ("(loading is" in shown or "(decoding takes" in shown) == (not given)
