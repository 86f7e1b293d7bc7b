"""Students and teachers that are not timm's: torchvision's models, and functions of a user's code."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import timm
import torch
import torchvision
from support import tiny_model, write_digits
from timm.models import save_for_hf

import kdkit
from kdkit.cli import main
from kdkit.config import SingleTeacherConfig, StudentConfig
from kdkit.config.normalization import format_normalization, parse_normalization
from kdkit.errors import CheckpointError, ConfigError, UnknownNameError
from kdkit.student import load_student
from kdkit.teachers.starting_weights import load_body
from kdkit.teachers.timm_model import create_model, size_option
from kdkit.teachers.weights import read_checkpoint

TRAIN = ["--epochs", "1", "--batch-size", "10", "--workers", "0", "--size", "32", "--no-preflight"]
CODE = """
from torch import nn

def make(num_classes=10, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def none(num_classes):
    return None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_digits(tmp_path / "data", 20)
    (tmp_path / "own_models.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return tmp_path


def test_a_torchvision_student_trains_and_is_evaluated_exported_and_a_teacher(folder: Path) -> None:
    distill = ["distill", "data", "--student", "torchvision:squeezenet1_1", *TRAIN]
    assert main([*distill, "-o", "runs/tv"]) == 0
    assert main(["evaluate", "runs/tv", "data", "--workers", "0"]) == 0
    assert main(["export", "runs/tv", "-o", "exported"]) == 0
    card = (folder / "exported" / "README.md").read_text()
    assert "| architecture | torchvision:squeezenet1_1" in card
    assert "| teacher | none, labels alone |" in card
    run, _ = load_student(StudentConfig(student="runs/tv"))
    exported, described = load_student(StudentConfig(student="exported"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(run(images), exported(images))
    assert described.class_names == tuple(str(digit) for digit in range(10))
    build = ["cache", "build", "data", "--teacher", "exported", "--size", "32", "-o", "tv.h5", "--workers", "0"]
    assert main(build) == 0


def test_torchvisions_weights_are_loaded_without_the_head_of_another_number_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is where torch.hub keeps it, so that nothing is downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2])
    whole = kdkit.create_teacher("torchvision:squeezenet1_1")
    assert whole.num_classes == 1000
    assert whole.normalization.mean == (0.485, 0.456, 0.406)
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())
    part = create_model("torchvision:squeezenet1_1.IMAGENET1K_V1", "student", pretrained=True, num_classes=3)
    differing = [name for name, value in part.state_dict().items() if not torch.equal(value, state[name])]
    assert differing == ["classifier.1.weight", "classifier.1.bias"]


def test_a_student_starts_from_a_checkpoint_and_keeps_its_own_head_for_other_classes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = timm.create_model("test_resnet", num_classes=7)
    torch.save({"state_dict": earlier.state_dict()}, folder / "earlier.pth")
    start = ["--student-checkpoint", "earlier.pth", "--train.lr", "1e-12", "--train.opt", "sgd"]
    assert main(["distill", "data", "--student", "test_resnet", *start, *TRAIN, "-o", "runs/tuned"]) == 0
    assert "its classifier has other classes, and is left out" in caplog.text
    tuned, _ = load_student(StudentConfig(student="runs/tuned"))
    torch.testing.assert_close(tuned.conv1[0].weight, earlier.conv1[0].weight, rtol=0, atol=1e-6)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_body(timm.create_model("test_vit"), read_checkpoint("earlier.pth"))


def test_a_vision_transformer_of_torchvision_gets_the_size_of_the_views(folder: Path) -> None:
    assert size_option("torchvision:vit_b_16", 64) == {"image_size": 64}
    assert size_option("torchvision:resnet18", 64) == {}
    assert size_option("vit_tiny_patch16_224", 64) == {"img_size": 64}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("torchvision:resnet19", "has no student 'resnet19'; did you mean 'resnet18'"),
        ("torchvision:resnet18.V9", "has no weights 'V9' of 'resnet18'; it has IMAGENET1K_V1"),
        ("own_modelz:make", "names no module that can be imported"),
        ("own_models:made", "has no function 'made'; did you mean 'make'"),
        ("own_models:none", "returned NoneType, expected an nn.Module"),
    ],
)
def test_a_name_that_nothing_has_is_one_line(
    folder: Path, name: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "data", "--student", name, *TRAIN, "-o", "o"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_a_student_of_ones_own_code_runs_again_only_if_it_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--student-options", "{width: 6}"]
    assert main(["distill", "data", "--student", "own_models:make", *options, *TRAIN, "-o", "runs/own"]) == 0
    assert main(["evaluate", "runs/own", "data", "--workers", "0"]) == 1
    assert "runs only if you name it: give --arch own_models:make" in capsys.readouterr().err
    assert main(["evaluate", "runs/own", "data", "--workers", "0", "--arch", "own_models:make"]) == 0
    assert main(["export", "runs/own", "-o", "exported", "--arch", "own_models:make"]) == 0
    build = ["cache", "build", "data", "--teacher", "exported", "--size", "32", "-o", "own.h5", "--workers", "0"]
    assert main(build) == 1
    assert main([*build, "--arch", "own_models:make"]) == 0
    shutil.rmtree(folder / "runs")
    with pytest.raises(UnknownNameError, match="did you mean 'make'"):
        create_model("own_models:mak", "student", num_classes=2)
    with pytest.raises(ConfigError, match="takes no argument pretrained"):
        create_model("own_models:make", "student", pretrained=True, num_classes=2)


def test_a_teacher_of_ones_own_code_need_not_say_how_many_classes_it_has(folder: Path) -> None:
    dataset = kdkit.open_dataset("data", recipe=kdkit.ViewRecipe(size=32))
    kdkit.build_cache(kdkit.create_teacher("own_models:make"), dataset, "own.h5")
    assert kdkit.open_cache("own.h5").num_classes == 10


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("imagenet", timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD),
        ("inception", timm.data.IMAGENET_INCEPTION_MEAN, timm.data.IMAGENET_INCEPTION_STD),
        ("clip", timm.data.OPENAI_CLIP_MEAN, timm.data.OPENAI_CLIP_STD),
        ("none", (0, 0, 0), (1, 1, 1)),
        ("0/0.25", (0, 0, 0), (0.25, 0.25, 0.25)),
        ("0.1,0.2,0.3/0.5", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
        ("imagenett", None, None),
        ("0.5", None, None),
        ("0.5/0", None, None),
        ("0.1,0.2/0.5", None, None),
        ("nan/1", None, None),
    ],
)
def test_a_normalisation_is_a_name_or_numbers(text: str, mean: Any, std: Any) -> None:
    if mean is None:
        with pytest.raises(ConfigError, match="normalization must be imagenet, inception, clip, none, or MEAN/STD"):
            SingleTeacherConfig("m", normalization=text)
        return
    assert parse_normalization(text) == (tuple(map(float, mean)), tuple(map(float, std)))
    assert parse_normalization(format_normalization(mean, std)) == parse_normalization(text)


def test_a_teacher_of_own_code_sees_images_in_the_normalisation_that_is_given(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    build = ["cache", "build", "data", "--teacher", "own_models:make", "--size", "32", "--codec", "float32"]
    outputs = {}
    for name, more in {"told": ["--teacher-normalization", "0/0.25"], "assumed": []}.items():
        caplog.clear()
        torch.manual_seed(0)
        assert main([*build, *more, "-o", f"{name}.h5", "--workers", "0"]) == 0
        assert ("states no normalisation, so ImageNet's is taken" in caplog.text) == (name == "assumed")
        outputs[name] = kdkit.open_cache(f"{name}.h5")
    dataset = kdkit.open_dataset("data", cache="told.h5")
    torch.manual_seed(0)
    plain = importlib.import_module("own_models").make()
    pixels = torch.stack([dataset[row, 0].image for row in range(20)]).float() / 255
    told = kdkit.open_cache("told.h5", dataset)
    rows = told(kdkit.Batch(pixels, torch.zeros(20), torch.arange(20), 0)).logits
    torch.testing.assert_close(rows, plain(4 * pixels).log_softmax(dim=1), rtol=1e-4, atol=1e-5)
    assert [cache.teacher["mean"][0] for cache in outputs.values()] == [0.0, 0.485]


def test_teachers_of_other_classes_and_without_a_head_teach_their_features_side_by_side(folder: Path) -> None:
    """From two caches and live: a transformer without a head, and a map before a ReLU of a model of 7 classes."""
    save_for_hf(tiny_model("test_vit", num_classes=0), folder / "headless", safe_serialization=True)
    save_for_hf(tiny_model("test_resnet", num_classes=7), folder / "other", safe_serialization=True)
    before_relu = "layer4.0.act2.input"
    for name, stream in (("headless", "pooled"), ("other", before_relu)):
        build = ["cache", "build", "data", "--teacher", name, "--streams", stream, "--size", "32", "--workers", "0"]
        assert main([*build, "-o", f"{name}.h5"]) == 0
    with h5py.File(folder / "other.h5", locking=False) as file:
        assert before_relu in json.loads(file.attrs["kdkit"])["streams"]

    def loss(first: str, second: str) -> str:
        one = {"loss": "hint_mse", "student_taps": "3.input", "teacher_taps": first}
        two = {"loss": "hint_mse", "weight": 2.0, "student_taps": "0", "teacher_taps": second}
        return json.dumps({"one": one, "two": two})

    distill = ["distill", "data", "--student", "own_models:make", *TRAIN]
    live = ["--teacher", "headless", "--teacher.ensemble", "[{model: other, weight: 0}]"]
    assert main([*distill, *live, "--loss", loss("0:pooled", f"1:{before_relu}"), "-o", "live"]) == 0
    cached = ["--cache", "headless.h5", "other.h5"]
    assert main([*distill, *cached, "--loss", loss("pooled", before_relu), "-o", "cached"]) == 0
    runs = [json.loads((folder / run / "metrics.jsonl").read_text().splitlines()[-1]) for run in ("live", "cached")]
    for term in ("one", "two", "kd_loss"):
        assert runs[0][term] == pytest.approx(runs[1][term], rel=1e-3)  # a cache holds features in float16
    assert runs[0]["kd_loss"] == pytest.approx(runs[0]["one"] + 2 * runs[0]["two"], rel=1e-5)
