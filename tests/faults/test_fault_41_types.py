"""Fault 41: values of wrong types, unknown models and long integers in options, trackers and students: one line each.

Each row is a command line; it ends with exit code 1 or 2 and exactly one line of kdkit's.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import tiny_model, write_digits

from kdkit.cli import main
from kdkit.cli._loading import loading_notice
from kdkit.errors import CheckpointError
from kdkit.teachers.timm_model import create_model

MANY = "9" * 30
TRAIN = "distill train --student test_resnet --size 32 --epochs 1 --batch-size 8 --workers 0 --device cpu -o run"
TEACH = f"{TRAIN} --teacher teacher"
BUILD = "cache build train --teacher teacher --size 32 --workers 0 --device cpu -o t.h5"

ODD_STUDENTS = """
import torch
from torch import nn


class Student(nn.Module):
    def __init__(self, num_outputs, dtype):
        super().__init__()
        self.dtype, self.fc = dtype, nn.Linear(3, num_outputs)

    def forward(self, images):
        return self.fc(images.mean((2, 3))).to(self.dtype)


def returns_complex(num_classes):
    return Student(num_classes, torch.complex64)


def returns_more(num_classes):
    return Student(num_classes + 1, torch.float32)


def is_lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def is_meta(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes, device="meta"))


def ends(num_classes):
    raise SystemExit(0)
"""

LINES: dict[str, str] = {
    # students
    f"{TRAIN} --student test_resnett": "timm .* has no student 'test_resnett'; did you mean 'test_resnet'",
    f"{TRAIN} --student test_resnet.nope": "has no student 'test_resnet.nope'; it has test_resnet.r160_in1k",
    f"{TRAIN} --student test_resnet.": "has no student 'test_resnet.'; it has test_resnet.r160_in1k",
    f"{TRAIN} --student a/b": "has no student 'a/b'",
    f"{TRAIN} --student odd_students:returns_complex": r"returns a tensor .* of torch.complex64, expected logits",
    f"{TRAIN} --student odd_students:returns_more": "the student returns 11 logits, and is to have 10 classes",
    f"{TRAIN} --student odd_students:is_lazy": "has a lazy weight, 1.weight: run the model once on an image",
    f"{TRAIN} --student odd_students:is_meta": "has the weight 1.weight on the device meta, without values",
    f"{TRAIN} --student odd_students:ends": "'odd_students:ends' ends the process, expected an nn.Module",
    f"{TRAIN} --student script_that_ends:model": "cannot be imported: it ends the process",
    f"{TRAIN} --tracker script_that_ends:model": "module 'script_that_ends' of the tracker cannot be imported",
    f"{TRAIN} --student teacher": "is the folder of a trained one, expected a timm name",
    f"{TRAIN} --student train": "the folder of that name has neither a run's student.json nor",
    f"{TRAIN} --student-options '{{nonsense: 1}}'": "does not take these options: .*'nonsense'",
    f"{TRAIN} --student-options '{{checkpoint_path: nope.pth}}'": "there is no checkpoint at 'nope.pth'",
    f"{TRAIN} --student-options '{{checkpoint_path: empty.pth}}'": "'empty.pth' is empty",
    f"{TRAIN} --student-options '{{checkpoint_path: vit.pth}}'": "'vit.pth' does not fit test_resnet: it lacks",
    f"{TRAIN} --student-options '{{in_chans: 1}}'": "in_chans must be 3, because images are RGB, got 1",
    f"{TRAIN} --student-options '{{num_classes: x}}'": "does not take these options",
    f"{TRAIN} --student-options '{{num_classes: 5}}'": "student_options give the student 5 classes, .* have 10",
    f"{TRAIN} --student-options '{{features_only: true}}'": "has no logits to train",
    f"{TRAIN} --student-options '{{drop_rate: x}}'": "test_resnet.*could not convert string to float",
    f"{TRAIN} --student-options '[1]'": "student_options cannot be",
    f"{TRAIN} --student test_vit --size 33": "'test_vit' does not take images .*33 should be|divisible by patch size",
    f"{TRAIN} --student vit_tiny_patch16_224 --student-options '{{img_size: 224}}'": "does not take images .* 32",
    f"{TRAIN} --batch-size 1": "normalises over the batch, and a batch of 1 image .* batch size of 2 or more per rank",
    f"{TRAIN} --batch-size 1 --no-preflight": "normalises over the batch, and a batch of 1 image",
    # optimisers and schedules
    f"{TRAIN} --train.opt lbfgs": "timm has no optimiser 'lbfgs'",
    f"{TRAIN} --train.opt adahessian --train.amp float16": "differentiates the gradients, .* amp float16",
    f"{TRAIN} --train.opt_options '{{betas: 3}}'": "the optimiser 'adamw' does not take these options",
    f"{TRAIN} --train.opt_options '{{eps: x}}'": "the optimiser 'adamw' does not take these options",
    f"{TRAIN} --train.sched step --train.sched_options '{{decay_epochs: x}}'": "the schedule 'step' does not work",
    f"{TRAIN} --train.sched_options '{{num_epochs: 1e30}}'": "the schedule 'cosine'",
    # numbers
    f"{TRAIN} --epochs {MANY}": "epochs must be from 1 to 1,000,000 epochs, got 9999",
    f"{TRAIN} --batch-size {MANY}": "batch_size must be from 1 to",
    f"{TRAIN} --train.seed {MANY}": "seed must be at least 0 and below",
    f"{TRAIN} --train.accumulate {MANY}": "accumulate must be from 1 to",
    f"{TRAIN} --train.weight_decay -1": "weight_decay must be 0 or more, and layer_decay above 0, got -1.0 and None",
    f"{TRAIN} --train.layer_decay 0": "weight_decay must be 0 or more, and layer_decay above 0, got 0.05 and 0",
    f"{TRAIN} --task-loss-weight -1": "task_loss_weight and distill_loss_weight must be 0 or more",
    f"{BUILD} --views {MANY}": "num_views must be from 1 to",
    f"{BUILD} --recipe.seed {MANY}": "seed must be from",
    f"{BUILD} --teacher.input_size 1000000": "input_size must be from 1 to 4,096 pixels",
    f"{BUILD} --codec topk --build.codec_options '{{k: {MANY}}}'": "topk keeps 1 to num_classes=10 classes",
    f"{BUILD} --codec topk --build.codec_options '{{k: x}}'": "codec 'topk' does not take the options",
    "evaluate teacher train --device cpu --crop_pct 7": "crop_pct must be from",
    "evaluate teacher train --device cpu --input_size 1000000": "input_size must be from",
    # teachers
    f"{BUILD} --teacher.ensemble '[1]'": "teacher.ensemble cannot be 1",
    f"{BUILD} --teacher.ensemble '[{{model: 3}}]'": "teacher.ensemble cannot be 3",
    f"{BUILD} --teacher train": "the folder of that name has neither",
    f"{BUILD} --teacher.class_map empty.pth": "the class map 'empty.pth' is a file, expected a .json file",
    # configurations
    f"{TRAIN} --config empty.pth": "--config names no .*: 'empty.pth' holds None, expected fields, as",
    f"{TRAIN} --config broken_tracker.py": "'broken_tracker.py' holds '1 / 0', expected fields, as",
    "cache info a\udcff": r"the argument 'a\\udcff' is not text in UTF-8: rename the file",
    # losses
    f"{TEACH} --loss '{{kl: {{temperature: x}}}}'": "temperature must be a finite number above 0, got 'x'",
    f"{TEACH} --loss '{{dkd: {{beta: [1]}}}}'": "loss 'dkd' cannot work with these options",
    f"{TEACH} --task feature": "the task feature needs a loss on features, got 'kl'",
    f"{TEACH} -o teacher --overwrite": "the output 'teacher' would replace 'teacher', or a part of it",
    f"{TRAIN} --student-checkpoint teacher/last.pth.tar -o teacher --overwrite": "would replace 'teacher/last.pth.tar'",
    # trackers
    f"{TRAIN} --tracker wandbb": "there is no tracker 'wandbb'; did you mean 'wandb'",
    f"{TRAIN} --tracker :x": "there is no tracker ':x'",
    f"{TRAIN} --tracker x:": "there is no tracker 'x:'",
    f"{TRAIN} --tracker .:a": "there is no tracker '.:a'",
    f"{TRAIN} --tracker a:b:c": "there is no tracker 'a:b:c'",
    f"{TRAIN} --tracker no_such_module:x": "cannot be imported: No module named 'no_such_module'",
    f"{TRAIN} --tracker os:nope": "the module 'os' has no 'nope'",
    f"{TRAIN} --tracker os:sep": "the tracker 'os:sep' could not be made of .*not callable",
    f"{TRAIN} --tracker json:JSONDecoder": "the tracker 'json:JSONDecoder' could not be made of",
    f"{TRAIN} --tracker builtins:repr": "makes a str, which has no method log",
    f"{TRAIN} --tracker broken_tracker:Any": "the module 'broken_tracker' .* ZeroDivisionError",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, a teacher in a run's folder, weights of another model, and a tracker's module with a mistake."""
    root = tmp_path_factory.mktemp("types")
    write_digits(root / "train", 40)
    (root / "teacher").mkdir()
    torch.save({"state_dict": tiny_model(seed=1).state_dict()}, root / "teacher" / "last.pth.tar")
    description = {
        "model": "test_resnet", "model_args": {"num_classes": 10}, "input_size": 32, "crop_pct": 1.0,
        "interpolation": "bilinear", "class_names": [str(digit) for digit in range(10)],
    }  # fmt: skip
    (root / "teacher" / "student.json").write_text(json.dumps(description))
    (root / "empty.pth").touch()
    torch.save(tiny_model("test_vit").state_dict(), root / "vit.pth")
    (root / "broken_tracker.py").write_text("1 / 0\n")
    (root / "odd_students.py").write_text(ODD_STUDENTS)
    (root / "script_that_ends.py").write_text("raise SystemExit(0)\n")
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))


@pytest.mark.parametrize("line", LINES)
def test_fault_41_a_value_that_cannot_work_is_one_line(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    arguments = shlex.split(line.replace("-o run", f"-o {tmp_path / 'run'}").replace("t.h5", str(tmp_path / "t.h5")))
    assert main(arguments) in (1, 2)
    shown = [text for text in capsys.readouterr().err.splitlines() if text.startswith("kdkit: error: ")]
    assert len(shown) == 1
    assert len(shown[0]) < 700
    assert re.search(LINES[line], shown[0]), shown[0]


def test_fault_41_pretrained_weights_without_a_network_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: object, **options: object) -> None:  # at once, in place of the client's retries
        raise ConnectionError("nobody answers")

    for is_offline in (True, False):
        with monkeypatch.context() as network, loading_notice():
            network.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
            if not is_offline:
                network.setattr("timm.create_model", refuse)
            with pytest.raises(CheckpointError, match=r"the pretrained weights of the student .test_resnet. could"):
                create_model("test_resnet", "student", pretrained=True)
        told = "" if is_offline else "kdkit: loading the weights of test_resnet from the hub\n"
        assert capfd.readouterr().err == told
