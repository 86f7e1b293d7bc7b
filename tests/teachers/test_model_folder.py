"""A folder in the layout of timm's hub is a document of any origin: bounded, or one line that names its file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support import tiny_model, within
from torch import Tensor

from kdkit import create_teacher
from kdkit.config import StudentConfig
from kdkit.errors import CheckpointError, KdkitError
from kdkit.student import load_student

CONFIG: dict[str, Any] = {
    "architecture": "test_resnet",
    "num_classes": 10,
    "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.3, 0.4]},
}


@pytest.fixture(autouse=True)
def _no_wait() -> Iterator[None]:
    """A model of 10^6 layers, or a pipe, would be waited for."""
    with within(60):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder."""
    save_file(tiny_model().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def with_args(**fields: Any) -> str:
    return json.dumps({**CONFIG, "model_args": fields})


def with_config(**fields: Any) -> str:
    return json.dumps({**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], **fields}})


TEXTS = {
    "[" * 100_000: "config.json' is not JSON that kdkit can read: it is nested too deeply",
    "[]": "it holds [], expected names with values",
    "{}": "timm has no architecture None",
    json.dumps({**CONFIG, "architecture": "test_resnett"}): "architecture 'test_resnett'; did you mean 'test_resnet",
    json.dumps({**CONFIG, "architecture": "local-dir:/"}): "timm has no architecture 'local-dir:/'",
    json.dumps({**CONFIG, "num_classes": 10**12}): "num_classes must be from 0 to 1,048,576 classes",
    json.dumps({**CONFIG, "num_classes": "x"}): "its num_classes is 'x', expected a whole number",
    json.dumps({**CONFIG, "model_args": [1]}): "its model_args is [1], expected names with values",
    json.dumps({**CONFIG, "pretrained_cfg": [1]}): "its pretrained_cfg is [1], expected names with values",
    with_args(channels=[10**7] * 4): "the model's argument channels must be at most 65,536",
    with_args(layers=[10**6] * 4): "the model's argument layers must be at most 1,000",
    with_args(channels=[60_000] * 4): "the model that is described has",
    with_args(nonsense=1): "does not take these options",
    with_config(crop_pct="x"): "its crop_pct is 'x', expected a number",
    with_config(crop_pct=-1): "crop_pct must be from 0.01 to 1",
    with_config(input_size=[3, 10**6, 10**6]): "input_size must be from 1 to 4,096",
    with_config(input_size=[3]): "its input_size is [3], expected channels, height and width",
    with_config(mean="x"): "its mean is 'x', expected three numbers",
    with_config(std=[0, 0, 0]): "its std is [0, 0, 0], expected three numbers above 0",
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_fault_41_a_description_that_claims_the_absurd_is_one_line(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    for load in (
        lambda: load_student(StudentConfig(student=str(folder))),
        lambda: create_teacher(f"local-dir:{folder}"),
    ):
        with pytest.raises(KdkitError, match=re.escape(TEXTS[text])) as error:
            load()
        assert str(folder) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (os.mkfifo, "is a pipe, expected a regular file"),
    "nothing": (lambda path: None, "holds no weights: expected model.safetensors next to config.json"),
    "git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "run git lfs pull"),
    "a page": (lambda path: path.write_text("<!doctype html><html></html>"), "is a web page"),
    "an empty file": (Path.touch, "is empty"),
}


@pytest.mark.parametrize("kind", FILES)
def test_fault_33_weights_that_are_none_are_named(folder: Path, kind: str) -> None:
    make, text = FILES[kind]
    (folder / "model.safetensors").unlink()
    make(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=text):
        load_student(StudentConfig(student=str(folder)))


def test_a_good_folder_is_what_timm_loads_from_it(folder: Path) -> None:
    model, student = load_student(StudentConfig(student=str(folder)))
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), plain(images))
    assert model.pretrained_cfg["std"] == plain.pretrained_cfg["std"] == [0.2, 0.3, 0.4]
    assert (student.input_size, student.crop_pct) == (32, 1.0)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a scalar": lambda weight: torch.tensor(1.0),
    "no numbers": lambda weight: weight[:0],
    "one side more": lambda weight: weight[None],
    "half of it": lambda weight: weight[: len(weight) // 2],
    "whole numbers": lambda weight: weight.to(torch.int8),
    "complex": lambda weight: weight.to(torch.complex64),
    "sparse": lambda weight: weight.to_sparse(),
    "without data": lambda weight: weight.to("meta"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["fc.weight", "fc.bias", "conv1.0.weight"])
def test_fault_28_a_weight_that_copying_would_change_is_one_line(folder: Path, name: str, change: str) -> None:
    state = load_file(folder / "model.safetensors")
    torch.save({"state_dict": {**state, name: CHANGES[change](state[name])}}, folder / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth' (does not fit test_resnet: .*|holds no state dict)") as error:
        create_teacher("test_resnet", checkpoint=folder / "w.pth")
    assert len(str(error.value).splitlines()) == 1
