"""The presets: each is what the dataclasses and timm accept, names its source, and gives way to options beside it."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import yaml
from support import tiny_model

from kdkit import losses
from kdkit.building.config import CacheBuildConfig
from kdkit.cli import main
from kdkit.cli._parse import parse_config
from kdkit.errors import UnknownNameError
from kdkit.presets import list_presets, load_preset
from kdkit.teachers.tap import available_taps
from kdkit.training.config import DistillConfig
from kdkit.training.optimizer import create_optimizer, create_schedule

NAMES = list_presets()
FOLDERS = ["--data", "imagenet/train", "-o", "out"]


def test_the_settings_of_the_plan_are_there() -> None:
    resnets = ["resnet18_dist", "resnet18_kd", "resnet18_mgd", "resnet18_srrl"]
    assert ["deit_tiny_hard", "funmatch_resnet50", *resnets, "resnet50_a2_kl"] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_makes_valid_configurations_of_names_that_exist(name: str) -> None:
    preset = load_preset(name)
    assert preset.sources
    assert all(source.cite and source.url.startswith("https://") for source in preset.sources)
    build = parse_config(CacheBuildConfig, "cache build", ["--preset", name, *FOLDERS])
    live = parse_config(DistillConfig, "distill", [f"--preset={name}", *FOLDERS])
    cached = parse_config(DistillConfig, "distill", ["--preset", name, "--cache", "t.h5", *FOLDERS])
    assert live.teacher == build.teacher
    assert live.recipe == dataclasses.replace(build.recipe, num_views=1)  # one for each epoch, at the command line
    assert (cached.teacher, cached.recipe, cached.train) == (None, None, live.train)
    assert build.teacher.model in timm.list_pretrained(f"{build.teacher.model.partition('.')[0]}.*")
    assert timm.is_model(live.student)
    assert set(live.loss_names) <= set(losses.available())
    if live.task_kind == "feature":  # its cache holds what the losses compare
        assert set(live.teacher_taps or live.student_taps) <= set(build.build.streams)
        assert set(live.student_taps) <= set(available_taps(timm.create_model(live.student)))
    assert create_optimizer(tiny_model(), live.train).param_groups[0]["weight_decay"] in (0.0, live.train.weight_decay)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("resnet18")])
def test_steps_of_the_learning_rate_fall_where_the_source_has_them(name: str) -> None:
    config = parse_config(DistillConfig, "distill", ["--preset", name, *FOLDERS]).train
    optimizer = create_optimizer(tiny_model(), config)
    scheduler = create_schedule(optimizer, config, updates_per_epoch=1)
    assert scheduler is not None
    rates = []
    for epoch in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)
    expected = [config.lr * 0.1 ** sum(epoch >= step for step in (30, 60, 90)) for epoch in range(100)]
    assert rates == pytest.approx(expected)


def test_options_on_the_command_line_override_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["distill", *FOLDERS, "--train.epochs", "3", "--train.warmup_epochs", "1", "--preset", "resnet50_a2_kl"]
    assert main([*arguments, "--print_config"]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert written["train"]["epochs"] == 3
    assert written["train"]["opt"] == "lamb"
    assert written["recipe"]["mixup_alpha"] == 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_without_a_cache_shows_new_views_in_each_epoch(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, views in (([], None), (["--views", "3"], 3)):
        assert main(["distill", *FOLDERS, "--preset", name, *flags, "--print_config"]) == 0
        written = yaml.safe_load(capsys.readouterr().out)
        assert written["recipe"]["num_views"] == (views or written["train"]["epochs"])


def test_presets_are_listed_shown_and_guessed_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    assert main(["presets", "show", "funmatch_resnet50"]) == 0
    assert "bit_i1k.py" in capsys.readouterr().out
    with pytest.raises(UnknownNameError, match="'resnet18_kd'"):
        load_preset("resnet18-kd")
    assert main(["distill", *FOLDERS, "--preset", "resnet18kd"]) == 1
    assert "'resnet18_kd'" in capsys.readouterr().err
