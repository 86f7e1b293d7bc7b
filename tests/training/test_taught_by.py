"""A student names its caches and its live teacher: in its checkpoint, description, evaluation and export."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from support import RECIPE, tiny_model, write_digits

from kdkit import build_cache, create_teacher, open_cache, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.cli import main
from kdkit.student import Student


@pytest.mark.parametrize(("names", "live"), [("a", None), ("ab", "test_resnet")])
def test_the_identities_of_the_caches_and_the_live_teacher_go_with_the_student(
    tmp_path: Path, names: str, live: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path / "data", 40)
    dataset, config = open_dataset(tmp_path / "data", recipe=RECIPE), BuildConfig(codec="float32", num_workers=0)
    for seed, name in enumerate(names):
        build_cache(create_teacher(tiny_model(seed=seed)), dataset, tmp_path / f"{name}.h5", config)
    paths = [str(tmp_path / f"{name}.h5") for name in names]
    identities = [open_cache(path).identity for path in paths]
    run, fixed = str(tmp_path / "run"), ["--workers", "0", "--device", "cpu"]
    train = ["--student", "test_resnet", "--epochs", "1", "--batch-size", "8", *fixed, "-o", run]
    if live is not None:
        torch.save(tiny_model(seed=2).state_dict(), tmp_path / "live.pth")
        train += ["--teacher", str(tmp_path / "live.pth"), "--arch", live]
    assert main(["distill", str(tmp_path / "data"), "--cache", *paths, *train]) == 0
    checkpoint = torch.load(Path(run) / "last.pth.tar", weights_only=True)
    assert all(identity in checkpoint["kdkit"]["config"]["cache_sha256"] for identity in identities)
    expected = tuple({"teacher": "test_resnet", "identity": identity} for identity in identities)
    assert Student.read(Path(run)).caches == expected
    assert Student.read(Path(run)).live_teacher == live
    assert main(["export", run, "-o", str(tmp_path / "out")]) == 0
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 10
    _, header, card = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "timm"
    assert all(f"test_resnet, cache {identity[:16]}" in card for identity in identities)
    assert ("; test_resnet, live |" in card) == (live is not None)
    assert f"| training images | {tmp_path / 'data'} |" in card
    told = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert told["tag"] == "kdkit"
    assert not {"license", "origin_url", "hf_hub_id", "url", "paper_ids"} & {*told}  # of timm's own weights
    for student in (run, str(tmp_path / "out")):
        report = tmp_path / "report.json"
        command = ["evaluate", student, str(tmp_path / "data"), *fixed, "--output", str(report), "--overwrite"]
        assert main(command) == 0
        found = json.loads(report.read_text())
        assert (tuple(found["caches"]), found["live_teacher"]) == (expected, live)
        shown = capsys.readouterr().out
        assert all(f"taught by test_resnet, cache {identity[:16]}" in shown for identity in identities)
        assert ("taught by test_resnet, live\n" in shown) == (live is not None)


def test_a_student_from_before_teachers_were_named_is_read(tmp_path: Path) -> None:
    student = Student("test_resnet", {"num_classes": 10}, 32, 1.0, "bicubic", None)
    student.write(tmp_path)
    values = json.loads((tmp_path / "student.json").read_text())
    del values["caches"], values["live_teacher"]
    (tmp_path / "student.json").write_text(json.dumps(values))
    assert Student.read(tmp_path) == student


def test_a_student_of_its_own_average_names_no_live_teacher_and_its_card_has_the_exported_weights_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(write_digits(tmp_path / "data", 40)), tmp_path / "run"
    options = ["--student", "test_resnet", "--size", "32", "--epochs", "3", "--batch-size", "8", "--workers", "0"]
    teacher = ["--teacher", "ema", "--train.ema_decay", "0.9", "--lr", "1e-2", "--device", "cpu"]
    assert main(["distill", data, *options, *teacher, "--val", data, "-o", str(run)]) == 0
    assert Student.read(run).live_teacher is None
    rows = list(csv.DictReader((run / "summary.csv").read_text().splitlines()))
    best = max(range(3), key=lambda epoch: (float(rows[epoch]["val_ema_top1"]), -epoch))
    for name, column in (("plain", "val_top1"), ("ema", "val_ema_top1")):
        flags = ["--ema"] if name == "ema" else []
        assert main(["export", str(run), "-o", str(tmp_path / name), *flags]) == 0
        card = (tmp_path / name / "README.md").read_text()
        assert f"| top-1 | {float(rows[best][column]):.2f} % on " in card
    shutil.copytree(run, tmp_path / "other")
    for number, (checkpoint, is_measured) in enumerate(((run, True), (tmp_path / "other", False))):
        weights = ["--checkpoint", str(checkpoint / "model_best.pth.tar"), "-o", str(tmp_path / f"named{number}")]
        assert main(["export", str(run), *weights]) == 0
        card = (tmp_path / f"named{number}" / "README.md").read_text()
        assert ("| top-1 | " in card) == is_measured, card
