"""kdkit compare: runs of today, of older versions and of timm, whole and cut off, in one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from run_samples import write_run
from support import digits_dataset, loader_for, tiny_model

from kdkit.cli import main
from kdkit.errors import ConfigError
from kdkit.report import compare
from kdkit.report.comparison import tabulate
from kdkit.report.curves import curve_charts
from kdkit.report.run_files import read_runs
from kdkit.report.runs_section import runs_section
from kdkit.tasks import ClassificationTask
from kdkit.training.config import TrainConfig
from kdkit.training.logger import RunLogger
from kdkit.training.train import train


def test_a_run_of_the_training_loop_is_read_back_with_the_figures_that_the_loop_reported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dataset, task = digits_dataset(60), ClassificationTask(tiny_model())
    report = train(
        task,
        loader_for(dataset, task.trainable_module),
        TrainConfig(epochs=2),
        validation=loader_for(dataset, task.trainable_module),
        logger=RunLogger(tmp_path / "run"),
    )
    (row,) = compare([tmp_path / "run"]).rows
    best = max(range(2), key=lambda epoch: report.epochs[epoch]["val_top1"])
    assert row["epochs"] == 2
    assert row["last_top1"] == report.top1
    assert (row["best_top1"], row["best_epoch"]) == (report.epochs[best]["val_top1"], best + 1)
    assert row["best_top5"] == report.epochs[best]["val_top5"]
    assert row["images_per_second"] == pytest.approx(report.images_per_second)
    assert row["seconds"] == pytest.approx(report.train_seconds)


def test_the_best_run_stands_first_and_its_best_epoch_is_counted_from_one(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [50.0, 60.0])
    write_run(tmp_path / "b", [70.0, 90.0, 80.0], num_parameters=11_700_000, num_views=8)
    first, second = compare([tmp_path / "a", tmp_path / "b"]).rows
    assert (first["best_top1"], first["best_epoch"], first["last_top1"]) == (90.0, 2, 80.0)
    assert (first["teacher"], first["loss"], first["parameters"], first["views"]) == ("t.h5", "kl", 11_700_000, 8)
    assert (first["images_per_second"], first["seconds"], first["waiting"]) == (25.0, 12.0, 0.25)
    assert second["best_top1"] == 60.0


def test_a_moving_average_is_what_the_best_epoch_is_chosen_by_as_in_training(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    for epoch, (plain, average) in enumerate([(90.0, 10.0), (50.0, 60.0)]):
        logger.log_epoch({"epoch": epoch, "val_top1": plain, "val_ema_top1": average, "val_ema_top5": average + 1})
    (row,) = compare([tmp_path]).rows
    assert (row["best_top1"], row["best_epoch"], row["best_top5"]) == (60.0, 2, 61.0)


@pytest.mark.parametrize(
    ("config", "teacher", "loss"),
    [
        ({"cache": ["a/b.h5", "c.h5"], "distill_loss": {"hint_mse": 100, "kl": 1}}, "b.h5 + c.h5", "100 hint_mse + kl"),
        ({"cache": None, "teacher": {"model": "m", "others": [{"model": "n"}]}}, "m + n", "kl"),
        ({"cache": None, "teacher": None}, "labels alone", None),
        ({"distill_loss": {"dkd": {"weight": 2, "beta": 0.5}}}, "t.h5", "2 dkd"),
    ],
)
def test_teacher_and_loss_are_named_from_the_configuration(
    tmp_path: Path, config: dict[str, Any], teacher: str, loss: str | None
) -> None:
    (row,) = compare([write_run(tmp_path / "run", [1.0], config=config)]).rows
    assert (row["teacher"], row["loss"]) == (teacher, loss)


def test_a_folder_of_runs_stands_for_the_runs_in_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, [1.0])
    (tmp_path / "runs" / "notes").mkdir()
    assert [row["run"] for row in compare([tmp_path / "runs"]).rows] == [str(tmp_path / "runs" / n) for n in "ab"]


def test_the_students_of_the_demo_share_a_folder_and_are_told_apart(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    for way, top1 in (("labels alone", 80.0), ("cached teacher", 95.0)):
        for seed in range(2):
            logger.with_context(way=way, seed=seed).log_epoch({"epoch": 0, "val_top1": top1 + seed})
    table = compare([tmp_path])
    assert [row["best_top1"] for row in table.rows] == [96.0, 95.0, 81.0, 80.0]
    assert table.rows[0]["run"] == f"{tmp_path} [cached teacher, 1]"


def test_a_run_of_timm_is_read_from_its_summary_and_arguments(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(
        "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,3,2,40,70,0.1\n1,2,1,55,80,0\n"
    )
    (tmp_path / "args.yaml").write_text("model: resnet50\nepochs: 2\ndata_dir: images\n")
    table = compare([tmp_path])
    (row,) = table.rows
    assert (row["student"], row["best_top1"], row["best_epoch"], row["best_top5"]) == ("resnet50", 55.0, 2, 80.0)
    assert (row["epochs"], row["planned_epochs"], row["teacher"]) == (2, 2, "labels alone")
    assert table.problems == ()


def test_a_run_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [50.0, 60.0, 70.0])
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[: whole.rindex(b'"val_top1"')])
    (run / "student.json").write_text('{"model": "resn')
    (run / "config.yaml").unlink()
    table = compare([run])
    (row,) = table.rows
    assert (row["epochs"], row["last_top1"], row["student"]) == (2, 60.0, None)
    assert any("metrics.jsonl" in problem and "1 line cut off" in problem for problem in table.problems)
    assert any("student.json" in problem and "cannot be read" in problem for problem in table.problems)


def test_a_run_without_metrics_json_is_read_from_its_summary(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [50.0, 60.0])
    (run / "metrics.jsonl").unlink()
    assert compare([run]).rows[0]["best_top1"] == 60.0


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("summary.csv", b"date,price\n2024-01-01,3\n", "has the columns date, price"),
        ("summary.csv", b"\x00\x01\xff\xfe" * 50, "no finished epoch"),
        ("summary.csv", b"epoch,val_top1\n0\n1,2,3,4\n", ""),
        ("metrics.jsonl", b'[1, 2]\n"epoch"\n{"epoch": "three"}\n', "3 lines cut off"),
        (
            "metrics.jsonl",
            b'{"epoch": -1}\n{"epoch": true}\n{"kind": "step", "epoch": -1, "step": 3}\n',
            "3 lines cut off",
        ),
        ("metrics.jsonl", b'{"epoch": 0, "seed": null}\n{"epoch": 0, "seed": [2]}\n{"epoch": 0, "seed": "<b>"}\n', ""),
        ("metrics.jsonl", b'{"kind": "step", "epoch": 0, "step": -9, "loss": 1}\n{"epoch": 1e400}\n', "1 line cut off"),
        ("config.yaml", b"- a\n- b\n", "holds no named values"),
        ("config.yaml", b"{a: [", "cannot be read"),
        ("config.yaml", b'teacher: {model: m, others: 5}\ncache: "\\0"\n', "no finished epoch"),
        ("config.yaml", b"teacher: {model: m, ensemble: 5}\n", "no finished epoch"),
        ("config.yaml", b"train: 3\nteacher: [1]\nrecipe: x\ncache: {}\nstudent: 4\n", "no finished epoch"),
    ],
)
def test_foreign_and_damaged_files_are_told_in_a_line_and_nothing_fails(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    runs, problems = read_runs([tmp_path], max_steps=10)
    table = tabulate(runs, problems)
    assert len(table.rows) >= 1
    assert told in "\n".join(table.problems)
    assert all("\n" not in problem for problem in table.problems)
    assert str(table)
    page = runs_section(table.rows, curve_charts(runs, [run.name for run in runs]))
    assert "<b>" not in page
    assert page.count('class="scroll"') == 1


def test_a_path_that_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "a", [50.0])
    odd = [tmp_path / "none", tmp_path / "file", tmp_path / "empty"]
    table = compare([*odd, tmp_path / "a"])
    assert len(table.rows) == 1
    assert [problem.split(":")[0].rsplit("' ", 1)[1] for problem in table.problems] == [
        "does not exist",
        "is not a run",
        "is not a run",
    ]
    with pytest.raises(ConfigError, match="none' does not exist: expected a folder"):
        compare(odd)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
def test_no_line_of_the_table_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    write_run(tmp_path / ("n" * 70), [1.0], config={"student": "vit_large_patch14_reg4_dinov2.lvd142m"}, num_views=8)
    write_run(tmp_path / "学生\x1b[31m", [2.0, 3.0], config={"train": {"epochs": 300}}, num_parameters=5_000_000)
    table = compare([*tmp_path.iterdir()])
    lines = table.text(width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "top-1" in lines[0]
    assert "\x1b" not in table.text(width)
    assert ("no room for" in table.text(width)) == (width < 200)


def test_json_and_csv_hold_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", [50.0, 61.25])
    assert main(["compare", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"][0]["best_top1"] == 61.25
    assert found["problems"] == []
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "none"), "--csv"]) == 0
    streams = capsys.readouterr()
    (row,) = csv.DictReader(streams.out.splitlines())
    assert {name: row[name] for name in ("best_top1", "best_epoch", "parameters")} == {
        "best_top1": "61.25", "best_epoch": "2", "parameters": "",
    }  # fmt: skip
    assert "does not exist" in streams.err


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", [50.0])
    assert main(["compare", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "50.00 (1)" in out
    assert max(map(len, out.splitlines())) <= 80
