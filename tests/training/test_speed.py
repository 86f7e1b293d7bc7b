"""What makes a run fast by default, what the header says of it, and the advice where the loop waits for images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import digits_dataset, loader_for, tiny_model

from kdkit import ClassificationTask
from kdkit.cli._flags import Grammar
from kdkit.data import ReplayLoader
from kdkit.runtime.hardware import fast_kernels, whole_products
from kdkit.runtime.progress import Display
from kdkit.tasks import TrainingTask
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.evaluate import evaluate
from kdkit.training.preflight import preflight
from kdkit.training.report import waiting_advice
from kdkit.training.run import run_identity
from kdkit.training.setup import describe_speed, uses_channels_last
from kdkit.training.train import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("student", "options", "device", "expected"),
    [
        ("test_resnet", {}, CPU, "float32"),
        ("test_resnet", {}, CUDA, "float32, TF32, cudnn.benchmark, channels last"),
        ("test_vit", {"amp": "bfloat16"}, CUDA, "autocast bfloat16, TF32, cudnn.benchmark"),
        ("test_resnet", {"channels_last": False}, CUDA, "float32, TF32, cudnn.benchmark"),
        ("test_vit", {"channels_last": True, "compile": True}, CPU, "float32, channels last, compiled"),
    ],
)
def test_the_header_says_how_a_student_runs(student: str, options: Any, device: torch.device, expected: str) -> None:
    config = TrainConfig(**options)
    assert describe_speed(tiny_model(student), config, device) == expected
    assert uses_channels_last(tiny_model(student), config, device) == ("channels last" in expected)


def test_a_run_may_resume_where_another_layout_is_the_default() -> None:
    dataset = digits_dataset(8)
    default, stored = (
        run_identity(DistillConfig("d", "o", "s", train=TrainConfig(channels_last=value)), dataset, None, None)
        for value in (None, False)
    )
    assert default == stored


@pytest.mark.parametrize(("flag", "value"), [("--train.channels_last", "true"), ("--no-train.channels_last", "false")])
def test_a_flag_whose_default_depends_on_the_device_is_given_bare(flag: str, value: str) -> None:
    given = Grammar("distill", DistillConfig, {"DATA": "data"}).to_long_forms(["data", flag])
    assert f"--train.channels_last={value}" in given


def test_fast_kernels_are_for_the_student_alone_and_end_with_the_run() -> None:
    def settings() -> tuple[bool, str]:
        return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()

    before = settings()
    with fast_kernels(CPU):
        assert settings() == before
    with fast_kernels(CUDA):
        assert settings() == (True, "high")
        with whole_products(CUDA):  # in which codecs decode
            assert settings() == (True, "highest")
        assert settings() == (True, "high")
    assert settings() == before


class Slow(ReplayLoader):
    """A loader whose batches take a while to arrive."""

    def pixel_batches(self) -> Any:
        for batch in super().pixel_batches():
            time.sleep(0.2)
            yield batch


class Lines(Display):
    """Keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)


def trained(loader: ReplayLoader, task: TrainingTask) -> tuple[list[str], float]:
    """The lines that a run of two epochs wrote, and the share of its last epoch in which it waited."""
    display = Lines()
    report = train(task, loader, TrainConfig(epochs=2, lr=1e-3), display=display)
    return display.lines, report.epochs[-1]["waiting"]


def test_a_run_that_waits_for_images_says_so_once_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdkit.training.report._WAITING_SECONDS", 0.1)
    task = ClassificationTask(tiny_model())
    quick = loader_for(digits_dataset(32), tiny_model(), batch_size=16)
    slow = Slow(quick.dataset, quick.sampler, quick.normalization)
    lines, share = trained(slow, task)
    assert 0.2 < share <= 1
    (advice,) = (line for line in lines if "waiting" in line)
    assert "of the epoch's time was spent waiting for images: give more loader workers (--workers)" in advice


def test_advice_is_given_above_a_fifth_of_an_epoch_that_is_no_moment() -> None:
    assert waiting_advice({"waiting": 0.19, "seconds": 1000.0}) is None
    assert waiting_advice({"waiting": 0.9, "seconds": 5.0}) is None
    assert str(waiting_advice({"waiting": 0.21, "seconds": 60.0})).startswith("21% of the epoch's time")
    assert waiting_advice({"seconds": 60.0}) is None  # an epoch of an older run


def test_the_check_before_the_first_step_loads_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    of_loader = ReplayLoader.pixel_batches

    def counted(loader: ReplayLoader) -> Any:
        for batch in of_loader(loader):
            loaded.append(len(batch.row))
            yield batch

    def ahead(*_: object) -> None:
        raise AssertionError("a batch more would be loaded")

    monkeypatch.setattr(ReplayLoader, "pixel_batches", counted)
    monkeypatch.setattr(ReplayLoader, "__iter__", ahead)
    task = ClassificationTask(tiny_model())
    preflight(task, loader_for(digits_dataset(64), tiny_model(), batch_size=16), None, TrainConfig(epochs=1))
    assert loaded == [16]


def test_evaluation_under_autocast_stays_near(tmp_path: Path) -> None:
    task, loader = ClassificationTask(tiny_model()), loader_for(digits_dataset(32), tiny_model())
    whole, half = (evaluate(task, loader, amp=amp)["loss"] for amp in (None, torch.bfloat16))
    assert 0 < abs(half - whole) < 0.05
