"""kdkit cache import, and students trained from what it wrote."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_caches import DATA, TRAIN, photographs
from support import tiny_model

from kdkit import build_cache, create_teacher, extend_cache, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.cache import open_cache
from kdkit.cli import main
from kdkit.errors import CacheMismatchError
from kdkit.importers import IMPORTERS

STUDENT = ("--student", "test_resnet", "--batch-size", "3", "--device", "cpu", "--workers", "0", "--no-preflight")


def distill(cache: Path, output: Path, *options: str) -> list[dict[str, Any]]:
    """The records of each step of two epochs."""
    command = ["distill", str(TRAIN), "--cache", str(cache), "--epochs", "2", "--train.log_every", "1", *STUDENT]
    assert main([*command, "-o", str(output), *options]) == 0
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"]


@pytest.mark.parametrize(
    ("arguments", "row_bytes"),
    [
        (["ml-dr", str(DATA / "ml-dr/randaug_mixing")], 24),
        (["fkd", str(DATA / "fkd/marginal_renorm_fp16"), "--size", "64", "--label-type", "marginal_renorm"], 13),
        (["fkd", str(DATA / "fkd/hard"), "--size", "64", "--codec", "float16", "--workers", "2"], 2000),
    ],
)
def test_an_import_prints_what_it_left_and_what_comes_next(
    arguments: list[str], row_bytes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "teacher.h5"
    assert main(["cache", "import", *arguments, str(TRAIN), "-o", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "6 images x 6 views" in printed
    assert f"next: kdkit distill {TRAIN} --cache {path}" in printed
    assert open_cache(path).codecs["logits"].row_bytes == row_bytes
    assert main(["cache", "info", str(path)]) == 0
    assert main(["cache", "verify", str(path)]) == 0


def test_arrays_are_imported_with_the_recipe_that_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", logits=np.zeros((6, 2, 4), "f4"), keys=list(photographs().keys))
    command = ["cache", "import", "arrays", str(tmp_path / "x.npz"), str(TRAIN), "-o", str(tmp_path / "teacher.h5")]
    assert main([*command, "--recipe", "deit", "--size", "64"]) == 0
    recipe = open_cache(tmp_path / "teacher.h5").recipe
    assert (recipe.size, recipe.num_views, recipe.auto_augment) == (64, 2, "rand-m9-mstd0.5-inc1")


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], "1 per image, 224 pixels: resized and cropped at the centre"),
        (["--size", "64"], "1 per image, 64 pixels: resized and cropped at the centre"),
        (["--size", "64", "--recipe.interpolation", "bilinear"], "64 pixels: resized and cropped at the centre"),
        (["--recipe.crop_pct", "0.95"], "224 pixels: resized and cropped at the centre"),
        (["--recipe", "eval", "--size", "64"], "64 pixels: resized and cropped at the centre"),
        (["--recipe", "rrc", "--size", "64"], "64 pixels: crops of 8 to 100 %, flips 0.5"),
        (["--recipe", "rrc"], "224 pixels: crops of 8 to 100 %, flips 0.5"),
        (["--size", "64", "--recipe.scale", "0.5,1"], "64 pixels: crops of 50 to 100 %, flips 0.5"),
        (["--size", "64", "--recipe.augment"], "64 pixels: crops of 8 to 100 %, flips 0.5"),
        (["--recipe.hflip", "0.5"], "224 pixels: crops of 8 to 100 %, flips 0.5"),
        (["--recipe.seed", "3"], "224 pixels: resized and cropped at the centre"),
        (["--config", "recipe: {scale: [0.08, 1.0]}"], "224 pixels: crops of 8 to 100 %, flips 0.5"),
        (["--config", "recipe: {size: 64}"], "64 pixels: resized and cropped at the centre"),
    ],
)
def test_arrays_are_of_the_evaluation_view_until_random_views_are_described(
    flags: list[str], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--config" in flags:
        (tmp_path / "c.yaml").write_text(flags[-1])
        flags = ["--config", str(tmp_path / "c.yaml")]
    np.save(tmp_path / "x.npy", np.zeros((6, 4), "f4"))
    path = str(tmp_path / "teacher.h5")
    assert main(["cache", "import", "arrays", str(tmp_path / "x.npy"), str(TRAIN), "-o", path, *flags]) == 0
    assert f"views ({shown.partition(': ')[2]})" in " ".join(capsys.readouterr().out.split())
    assert main(["cache", "info", path]) == 0
    assert shown in " ".join(capsys.readouterr().out.split())


def test_several_views_need_a_word_on_how_they_were_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 2, 4), "f4"))
    command = ["cache", "import", "arrays", str(tmp_path / "x.npy"), str(TRAIN), "-o", str(tmp_path / "teacher.h5")]
    assert main([*command, "--size", "64"]) == 1
    assert "2 views, the evaluation recipe has one: say how they were drawn" in capsys.readouterr().err
    assert main([*command, "--size", "64", "--recipe", "rrc"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["joblib", "x"], "no importer reads 'joblib'; known: ml-dr, fkd, arrays"),
        (
            ["ml-dr", str(DATA / "ml-dr/randaug"), "--label-type", "hard"],
            "label_type is not an option of the format ml-dr",
        ),
        (["ml-dr", str(DATA / "ml-dr/randaug"), "--size", "64"], "recipe is not an option of the format ml-dr"),
        (["fkd", str(DATA / "fkd/hard"), "--label-type", "soft"], "label_type must be one of hard"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "import", *arguments, str(TRAIN), "-o", str(tmp_path / "teacher.h5")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_fits_80_columns_and_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "import", "--help"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert all(name in printed for name in IMPORTERS)


class Terminal(io.StringIO):
    """Keeps what is written to it."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Puts a terminal of 80 columns in the place of both outputs; called in the test, as pytest's capture is before."""
    opened = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", opened)
    monkeypatch.setattr(sys, "stderr", opened)
    return opened


def _labelled_by_folders(folder: Path) -> Path:
    """ml-dr's mixed views of the photographs with a label over their four class folders."""
    folder.mkdir()
    config = torch.load(DATA / "ml-dr/randaug_mixing/reinforced_data/config.pth.tar", weights_only=True)
    torch.save({**config, "num_classes": 4}, folder / "config.pth.tar")
    for index in range(6):
        name = f"{index}.pth.tar"
        _, views = torch.load(DATA / "ml-dr/randaug_mixing/reinforced_data" / name, weights_only=False)
        torch.save((index, [{**view, "prob": ([0.2, 0.7], [0, 3])} for view in views]), folder / name)
    return folder


def test_a_student_is_trained_from_an_import_with_four_views_per_decode_in_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch)
    foreign = _labelled_by_folders(tmp_path / "foreign")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").symlink_to(TRAIN)
    assert main(["cache", "import", "ml-dr", str(foreign), "train", "-o", "teacher.h5", "--workers", "0"]) == 0
    assert main(["cache", "verify", "teacher.h5", "train"]) == 0
    loading = ("--epochs", "4", "--views-per-decode", "4", "--train.log_every", "1")
    command = ["distill", "train", "--cache", "teacher.h5", *loading, *STUDENT, "--batch-size", "4", "-o", "run"]
    assert main(command) == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if step["kind"] == "step"]
    assert len(steps) >= 4
    assert all(step["task_loss"] > 0 and step["kd_loss"] > 0 for step in steps)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "4 per decode" in shown
    lines = re.split(r"[\r\n]", shown)
    assert max(map(len, lines)) <= 80, max(lines, key=len)


def test_a_student_learns_from_labels_of_other_classes_without_the_folders_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "teacher.h5"
    source = str(DATA / "fkd/marginal_smoothing_k5")
    assert main(["cache", "import", "fkd", source, str(TRAIN), "-o", str(path), "--size", "64"]) == 0
    steps = distill(path, tmp_path / "run")
    assert all(step["task_loss"] == 0 and step["kd_loss"] > 0 for step in steps)
    assert "no label takes part in the loss" in caplog.text


@pytest.mark.parametrize("more", [["--views", "8"], []])
def test_outputs_and_views_from_elsewhere_are_not_extended_and_the_line_says_what_to_do(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 4), "f4"))
    sources = {"recorded": ["ml-dr", str(DATA / "ml-dr/randaug")], "array": ["arrays", str(tmp_path / "x.npy")]}
    for name, source in sources.items():
        path = str(tmp_path / f"{name}.h5")
        assert main(["cache", "import", *source, str(TRAIN), "-o", path]) == 0
        for teacher in ([], ["--teacher", "test_resnet"]):
            capsys.readouterr()
            assert main(["cache", "extend", path, str(TRAIN), *more, *teacher, "--device", "cpu"]) == 1
            assert "its outputs were imported or written, and kdkit did not run" in capsys.readouterr().err
    cache, teacher_of_four = open_cache(tmp_path / "recorded.h5"), create_teacher(tiny_model(num_classes=4))
    dataset = open_dataset(TRAIN, recipe=cache.recipe, records=cache)
    build_cache(teacher_of_four, dataset, tmp_path / "like.h5", BuildConfig(num_workers=0))
    with pytest.raises(CacheMismatchError, match="those that another cache records: build it again, --like a cache"):
        extend_cache(teacher_of_four, dataset, tmp_path / "like.h5")
