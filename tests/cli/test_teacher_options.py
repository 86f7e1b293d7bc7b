"""Teachers on the command line: ensembles, a student's own moving average, and the check of a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support import loader_for, tiny_model, write_digits

from kdkit import TeacherEnsemble, create_teacher, open_cache
from kdkit.cli import main
from kdkit.data import ReplayedDataset, create_source
from kdkit.recipe import ViewRecipe
from kdkit.types import Normalization


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits as an image folder, and two ten-class teachers beside it."""
    folder = tmp_path_factory.mktemp("teachers")
    write_digits(folder / "images", 40)
    for name in ("test_resnet", "test_vit"):
        save_file(tiny_model(name, seed=1).state_dict(), folder / f"{name}.safetensors")
    return folder


def ensemble(folder: Path, weight: float = 3.0) -> list[str]:
    other = {"model": "test_vit", "checkpoint": str(folder / "test_vit.safetensors"), "weight": weight}
    return [
        "--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "test_resnet.safetensors"),
        "--teacher.input_size", "48", "--teacher.ensemble", json.dumps([other]),
    ]  # fmt: skip


def distill(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        "distill", "--data", str(folder / "images"), "--output", str(output), "--student", "test_efficientnet",
        "--recipe.size", "32", "--train.epochs", "1", "--train.batch_size", "20", "--train.num_workers", "0", *more,
    ]  # fmt: skip


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The error of a command that must fail."""
    capsys.readouterr()
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_an_ensemble_builds_a_cache_of_its_mean_and_is_in_its_fingerprint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(folder / "images")]
    build = ["cache", "build", *data, "--output", str(folder / "t.h5"), "--recipe.size", "32", "--build.num_workers"]
    assert main([*build, "0", "--build.codec", "float32", *ensemble(folder)]) == 0
    dataset = ReplayedDataset(create_source(folder / "images"), ViewRecipe(size=32))
    cache = open_cache(folder / "t.h5", dataset)
    made_by = cache.metadata.teacher
    assert [member["pretrained_cfg"]["architecture"] for member in made_by["members"]] == ["test_resnet", "test_vit"]
    assert made_by["members"][0]["input_size"] == [48, 48]
    assert made_by["member_weights"] == [0.25, 0.75]

    members = [tiny_model("test_resnet", seed=1), tiny_model("test_vit", seed=1)]
    plain = TeacherEnsemble([create_teacher(members[0], input_size=48), create_teacher(members[1])], [1.0, 3.0])
    student = tiny_model("test_efficientnet")
    batch = next(iter(loader_for(dataset, student, batch_size=40)))
    torch.testing.assert_close(
        cache(batch).logits, plain.for_input(Normalization.of(student))(batch).logits, rtol=1e-4, atol=1e-4
    )

    verify = ["cache", "verify", "--cache", str(folder / "t.h5"), *data]
    assert main([*verify, *ensemble(folder)]) == 0
    assert "teacher.member_weights" in error_of(capsys, [*verify, *ensemble(folder, weight=1.0)])
    alone = ["--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "test_resnet.safetensors")]
    assert "made with teacher." in error_of(capsys, [*verify, *alone])
    assert "weight is that of a teacher in an ensemble" in error_of(capsys, [*verify, *alone, "--teacher.weight", "2"])


def test_an_ensemble_teaches_live_and_its_configuration_is_accepted_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(distill(folder, tmp_path / "run", *ensemble(folder))) == 0
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert [other["model"] for other in saved["teacher"]["ensemble"]] == ["test_vit"]
    again = ["distill", "--config", str(tmp_path / "run/config.yaml"), "--resume"]
    assert main(again) == 0
    found = error_of(capsys, [*distill(folder, tmp_path / "run", *ensemble(folder, weight=1.0)), "--resume"])
    assert "teacher.member_weights" in found


def test_a_student_learns_from_its_own_moving_average(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--teacher.model", "ema", "--train.ema_decay", "0.5"]
    assert main(distill(folder, tmp_path / "run", *own)) == 0
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["kd_loss"] for record in steps if record["kind"] == "step"]
    assert losses[0] > 0  # the average runs in eval mode
    assert main([*distill(folder, tmp_path / "run", *own), "--resume"]) == 0
    assert main(distill(folder, tmp_path / "features", *own, "--task", "feature", "--distill_loss", "hint_mse")) == 0
    for refused, reason in (
        (distill(folder, tmp_path / "no", "--teacher.model", "ema"), "--train.ema_decay"),
        (distill(folder, tmp_path / "no", *own, "--teacher.dtype", "bfloat16"), "leave out dtype"),
        (
            ["cache", "build", "--data", str(folder / "images"), "--output", "x.h5", *own[:2]],
            "only kdkit distill takes it",
        ),
    ):
        assert reason in error_of(capsys, refused)


def test_check_runs_the_very_teacher_that_builds_a_cache(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["teachers", "check", "--data", str(folder / "images"), "--num_workers", "0"]
    assert main([*check, *ensemble(folder)]) == 0
    assert "ensemble of test_resnet, test_vit" in capsys.readouterr().out

    card = {
        "name": "mine", "model": "test_resnet", "num_classes": 10, "input_size": [3, 32, 32], "mean": [0.5] * 3,
        "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0,
        "weights": {"checkpoint": str(folder / "test_resnet.safetensors")},
        "published_top1": [{"percent": 99.0, "input_size": 32}, {"percent": 98.0, "input_size": 64}],
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(card))
    mine = [*check, "--teacher.model", str(tmp_path / "mine.yaml")]
    found = {}
    (tmp_path / "map.json").write_text(json.dumps([*range(9, -1, -1)]))
    for name, options in {
        "plain": [],
        "larger": ["--teacher.input_size", "64"],
        "half": ["--teacher.dtype", "bfloat16"],
        "turned": ["--teacher.class_map", str(tmp_path / "map.json")],
    }.items():
        assert main([*mine, *options]) == 0
        found[name] = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert found["plain"]["published"] == "99.00 % at 32 pixels"
    assert found["larger"]["published"] == "98.00 % at 64 pixels"
    assert found["larger"]["images"] == "40 of 40, 64 pixels"
    assert found["turned"]["top-1"] != found["plain"]["top-1"]
    by_name = ["teachers", "check", str(tmp_path / "mine.yaml"), str(folder / "images"), "--workers", "0"]
    assert main(by_name) == 0
    assert dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()) == found["plain"]
    assert main(check) == 2
    assert "NAME is missing" in capsys.readouterr().err
