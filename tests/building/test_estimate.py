"""What an estimate says of a build: the part that it waits for, and from which student on a cache is cheaper."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support import RECIPE, CountingDigits, digits_dataset, tiny_model, write_digits

from kdkit import create_teacher
from kdkit.building.config import BuildConfig
from kdkit.building.estimate import describe_break_even, estimate_cache
from kdkit.building.speed import Speeds
from kdkit.cli import main
from kdkit.data import ReplayedDataset
from kdkit.runtime import progress

PARTS = Speeds(decode=8e-3, transform=1e-3, teacher=4e-3, encode=1e-3, write=1e6, read=1e6)


@pytest.mark.parametrize(
    ("views", "workers", "row_bytes", "limit"),
    [
        (1, 1, 96, "loading"),
        (4, 1, 96, "the teacher"),
        (1, 4, 96, "the teacher"),
        (1, 0, 96, "loading"),
        (8, 0, 96, "the teacher"),
        (8, 4, 9600, "the disk"),
    ],
)
def test_the_limit_is_the_slowest_of_the_parts_that_run_at_the_same_time(
    views: int, workers: int, row_bytes: int, limit: str
) -> None:
    parts = PARTS.per_view(views, workers, row_bytes)
    assert max(parts, key=lambda part: parts[part]) == limit


def test_loading_in_the_teachers_process_adds_to_its_time_and_workers_share_it() -> None:
    assert PARTS.per_view(1, 0, 96)["loading"] == pytest.approx(13e-3)
    assert PARTS.per_view(8, 0, 96)["the teacher"] == pytest.approx(6e-3)
    assert PARTS.per_view(1, 3, 96)["loading"] == pytest.approx(3e-3)


def test_an_estimate_measures_each_part_here_and_counts_shared_decodes() -> None:
    dataset = ReplayedDataset(CountingDigits(60), dataclasses.replace(RECIPE, num_views=4))
    config = BuildConfig(codec="int8", num_workers=0, batch_size=16)
    found = estimate_cache(create_teacher(tiny_model()), dataset, config)
    assert found.views_per_decode == 4
    assert all(value > 0 for value in dataclasses.astuple(found.speeds))
    parts = found.speeds.per_view(4, 0, found.row_bytes)
    assert parts[found.limit] == max(parts.values())
    assert found.live_epochs == pytest.approx(found.seconds / (60 * found.speeds.teacher))


@pytest.mark.parametrize(
    ("epochs", "views", "expected"),
    [
        (4.4, 4, "from student 2 on if each trains for 4 epochs, from the first one if it trains for more than 5"),
        (9.0, 4, "from student 3 on if each trains for 4 epochs, from the first one if it trains for more than 9"),
        (3.9, 4, "from student 1 on if each trains for 4 epochs, from the first one if it trains for more than 4"),
    ],
)
def test_the_break_even_follows_from_the_teachers_time(epochs: float, views: int, expected: str) -> None:
    dataset = ReplayedDataset(CountingDigits(20), RECIPE)
    found = estimate_cache(create_teacher(tiny_model()), dataset, BuildConfig(codec="float32", num_workers=0))
    text = describe_break_even(dataclasses.replace(found, live_epochs=epochs), views)
    assert text.startswith(f"the build takes as long as the live teacher in {epochs} epochs: a cache is cheaper ")
    assert text.endswith(expected)


def test_the_command_prints_speeds_limit_break_even_and_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(tiny_model().state_dict(), tmp_path / "teacher.safetensors")
    command = ["cache", "estimate", str(write_digits(tmp_path / "images", 20)), "--teacher", "test_resnet"]
    command += ["--teacher.checkpoint", str(tmp_path / "teacher.safetensors"), "--views", "2", "--size", "32"]
    assert main([*command, "--workers", "0", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    for text in ("decode ", "transform ", "teacher ", "encode ", "MiB/s here", "one decode for 2 of 2 views", "ml-dr"):
        assert text in shown
    assert "a cache is cheaper from student" in shown


def test_an_estimate_shows_what_it_is_doing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    dataset = digits_dataset(20)
    codec = BuildConfig(codec="lowrank", codec_options={"row_bytes": 12}, batch_size=10, num_workers=0)
    estimate_cache(create_teacher(tiny_model()), dataset, codec, show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("fitting and measuring codecs on outputs of test_resnet: ") for line in lines) == 3
    assert sum(line.startswith("timing some batches of the build: ") for line in lines) == 2
