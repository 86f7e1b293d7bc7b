"""A run whose teacher is the mix of a cache and a live teacher, compared with the mix of two caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import RECIPE, tiny_model, write_digits

from kdkit import build_cache, create_teacher, open_cache, open_dataset, precision
from kdkit.building.config import BuildConfig
from kdkit.cli import main
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.dataset import match_cache
from kdkit.errors import ClassMismatchError
from kdkit.student import Student
from kdkit.teachers.model_config import state_config
from kdkit.training import live


@pytest.mark.slow
def test_a_live_teacher_beside_a_cache_trains_the_student_that_its_cache_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path / "data", 40)
    dataset = open_dataset(tmp_path / "data", recipe=RECIPE)
    for seed, name in enumerate("ab"):
        model = tiny_model(seed=seed)
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
        teacher = create_teacher(model)
        build_cache(teacher, dataset, tmp_path / f"{name}.h5", BuildConfig(codec="float32", num_workers=0))
    fixed = ["--student", "test_resnet", "--epochs", "2", "--batch-size", "8", "--workers", "0", "--device", "cpu"]
    weights = ["--cache-weights", "1", "3", "--cache-temperatures", "1", "2", "--cache-combine", "losses"]
    live = [str(tmp_path / "a.h5"), "--teacher", str(tmp_path / "b.pth"), "--arch", "test_resnet"]
    runs = {"caches": [str(tmp_path / "a.h5"), str(tmp_path / "b.h5")], "live": live}
    for name, teachers in runs.items():
        command = ["distill", str(tmp_path / "data"), "--cache", *teachers, *weights, *fixed]
        assert main([*command, "-o", str(tmp_path / name)]) == 0
    header = " ".join(capsys.readouterr().err.split())
    assert "0.25 test_resnet + 0.75 test_resnet at T=2, from the cache" in header
    assert "a.h5, and test_resnet live" in header
    first, second = (torch.load(tmp_path / name / "last.pth.tar", weights_only=True)["state_dict"] for name in runs)
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-3, atol=1e-4)
    assert len(Student.read(tmp_path / "live").caches) == 1
    command = ["distill", str(tmp_path / "data"), "--cache", *live, *weights, *fixed, "-o", str(tmp_path / "live")]
    assert main([*command, "--resume"]) == 0
    command[command.index(str(tmp_path / "b.pth"))] = str(tmp_path / "a.pth")
    capsys.readouterr()
    assert main([*command, "--resume"]) == 1
    assert "cache_sha256" in capsys.readouterr().err


def test_a_live_teacher_whose_order_of_classes_cannot_be_told_is_no_part_of_a_mix(tmp_path: Path) -> None:
    images, names = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8), ["cat", "dog"]
    counted, called = tiny_model(num_classes=2, seed=1), create_teacher(tiny_model(num_classes=2), class_names=names)
    state_config(counted, of_a_run=True)  # as the student of a run whose data had class indices alone
    for given, teacher in ((None, called), (names, create_teacher(counted))):
        dataset = ReplayedDataset(ArraySource(images, [0, 1, 0, 1], class_names=given), RECIPE)
        build_cache(
            create_teacher(tiny_model(num_classes=2)), dataset, tmp_path / f"{given}.h5", BuildConfig(num_workers=0)
        )
        mix = open_cache([tmp_path / f"{given}.h5"], live=teacher)
        with pytest.raises(ClassMismatchError, match=r"in which order .* cannot be told"):
            match_cache(mix, dataset)
        match_cache(mix, dataset.without_labels())


def test_a_live_teacher_runs_in_the_precision_of_a_build_which_a_resumed_run_must_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path / "data", 20)
    torch.save(tiny_model(seed=1).state_dict(), tmp_path / "b.pth")
    teacher = create_teacher(tiny_model(seed=1))
    build_cache(teacher, open_dataset(tmp_path / "data", recipe=RECIPE), tmp_path / "a.h5", BuildConfig(num_workers=0))
    fixed = ["--student", "test_resnet", "--batch-size", "10", "--workers", "0", "--device", "cpu", "--no-preflight"]
    by_itself = ["--teacher", str(tmp_path / "b.pth"), "--arch", "test_resnet", "--size", "32"]
    of_a_mix = ["--cache", str(tmp_path / "a.h5"), *by_itself[:-2]]
    choose, check = precision.choose_autocast, precision.check_precision
    runs = {"alone": (by_itself, "test_resnet, live in"), "mix": (of_a_mix, "a.h5, and test_resnet live in")}
    for name, (teachers, text) in runs.items():
        command = ["distill", str(tmp_path / "data"), *teachers, *fixed, "-o", str(tmp_path / name), "--epochs", "1"]
        with monkeypatch.context() as on_cuda:  # whose check and run are on the CPU
            on_cuda.setattr(live, "choose_autocast", lambda *given: choose(*given[:3], torch.device("cuda")))
            on_cuda.setattr(precision, "check_precision", lambda *given: check(*given[:-1], torch.device("cpu")))
            assert main(command) == 0
        assert Student.read(tmp_path / name).live_teacher == "test_resnet"
        header = " ".join(capsys.readouterr().err.split())
        assert f"{text} autocast bfloat16, off by logits " in header
        assert main([*command, "--resume"]) == 1
        assert ("teacher.autocast" if name == "alone" else "cache_sha256") in capsys.readouterr().err
        assert main([*command, "--resume", "--teacher.autocast", "bfloat16"]) == 0
        assert f"{text} bfloat16" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--teacher", "ema", "--train.ema-decay", "0.9"], "moving average and a cache cannot both be the teacher"),
        (["--teacher", "x", "--train.min-confidence", "0.5"], "are of cached teachers alone: leave out --teacher"),
        (["--teacher", "x", "--cache-weights", "1"], "and for a live teacher beside them, got 1 for 2"),
        (["--cache-combine", "losses"], "cache_combine is of several teachers, got 1 with a cache: leave it out"),
    ],
)
def test_what_does_not_fit_beside_a_cache_is_refused(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "data", "--cache", "a.h5", "--student", "resnet18", "-o", "run", *options]) != 0
    assert reason in " ".join(capsys.readouterr().err.split())
